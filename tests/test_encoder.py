"""The API's promises: a text's vector is its own, never NaN, in the caller's order."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError, quantize_embeddings, runtime
from mlx_embeddinggemma.expansion import Expanded


@pytest.fixture(scope="module")
def model(tiny) -> EmbeddingGemma:
    return EmbeddingGemma(tiny)


TEXTS = [
    "the first text",
    "",
    "a",
    "in there " * 40,
    "the thin thing " * 60,
    "é 日本語 🎉",
    "x" * 255,
]


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_a_texts_vector_is_the_same_in_any_company(tiny, tmp_path, bits):
    """Alone, batched, reversed, beside a longer text; on both sides of the window."""
    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m", bits=bits) if bits else tiny
    model = EmbeddingGemma(folder)
    texts = [*TEXTS, "x" * 254, "x" * 256, "x" * 510, "x" * 511, "x" * 512]
    alone = np.stack([model.encode(text) for text in texts])
    assert_near(model.encode(texts), alone)
    assert_near(model.encode(texts[::-1])[::-1], alone)
    assert_near(model.encode([*texts, "y" * 2000])[:-1], alone)
    assert_near(model.encode(texts, batch_tokens=600), alone)
    assert_near(model.encode(texts, batch_size=2), alone)


@pytest.mark.skipif(runtime.on_gpu(), reason="a GPU holds packed weights as they are")
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_dequantized_once_give_the_same_vectors(tiny, tmp_path, bits):
    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m", bits=bits)
    packed, expanded = EmbeddingGemma(folder), EmbeddingGemma(folder, dequantize=True)
    assert isinstance(packed.network.layers[0], Expanded)
    assert expanded.network.layers[0].mlp.down_proj.weight.dtype == mx.float32
    assert_near(packed.encode(TEXTS), expanded.encode(TEXTS))


@pytest.mark.skipif(runtime.on_gpu(), reason="a GPU holds packed weights as they are")
def test_packed_weights_stay_on_disk_and_are_expanded_a_layer_at_a_time(tiny, tmp_path):
    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m", bits=4)
    expanded = EmbeddingGemma(folder, dequantize=True)
    floats = sum(w.nbytes for _, w in tree_flatten(expanded.network.parameters()))
    mx.clear_cache()
    before = mx.get_active_memory()
    packed = EmbeddingGemma(folder)
    assert mx.get_active_memory() - before < floats / 50
    mx.reset_peak_memory()
    packed.encode("a")
    assert mx.get_peak_memory() - before < floats / 2


@pytest.mark.parametrize("file", ["table", "weights"])
def test_a_file_that_became_another_while_in_use_is_noticed(tiny, tmp_path, file):
    folder = checkpoints.as_mlx_community(tiny, tmp_path / "m", bits=4)
    model = EmbeddingGemma(folder, dequantize=file == "table")
    another = checkpoints.write_tiny(tmp_path / "another", seed=1)
    other = checkpoints.as_mlx_community(another, tmp_path / "other", bits=4)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(EmbeddingGemmaError, match="changed while it was read: start again"):
        model.encode("a")


def test_a_string_gives_a_vector_and_a_sequence_a_matrix(model):
    assert model.encode("the").shape == (768,)
    assert model.encode(["the"]).shape == (1, 768)
    assert model.encode("the").dtype == np.float32
    assert model.encode([]).shape == (0, 768)
    assert model.encode([], truncate_dim=128).shape == (0, 128)
    assert model.encode(iter(["a", "b"])).shape == (2, 768)
    assert model.encode(("a", "b")).shape == (2, 768)


def test_a_text_that_comes_twice_gives_the_same_row_twice(model):
    vectors = model.encode(["a", "b", "a"])
    assert (vectors[0] == vectors[2]).all() and (vectors[0] != vectors[1]).any()


def test_a_text_is_computed_once_however_far_apart_it_comes(model, monkeypatch):
    texts = ["a", "b", "c", "a", "b" * 99, "b", "b" * 99, "a", "a", "d"]
    expected = np.concatenate([model.encode([text]) for text in texts])
    monkeypatch.setattr("mlx_embeddinggemma.encoder.CHUNK", 2)
    rows, network = [], model.network
    monkeypatch.setattr(
        model, "network", lambda ids, lengths: rows.extend(lengths) or network(ids, lengths)
    )
    assert_near(model.encode(iter(texts)), expected)
    assert len(rows) == len(set(texts))
    monkeypatch.setattr(model, "max_length", 9)
    with pytest.warns(UserWarning, match="^2 of 10 texts"):
        model.encode(texts)


HARD = {
    "empty": "",
    "one character": "a",
    "100,000 characters": "long " * 20_000,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇪🇺",
    "lone surrogate": "a\ud800b",
    "surrogate pair": "\ud83d\ude00",
    "NUL": "a\x00b\x00",
    "special tokens": "<bos><eos><pad><unk><mask><start_of_turn>",
    "outside the table": "<image_soft_token>",
    "only spaces": "     ",
    "newlines": "\n\n\r\n\t",
    "combining marks": "e\u0301\u0323" * 50,
    "right to left": "שלום עולם مرحبا",
    "private use": "\ue000\uffff\U0010ffff",
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.filterwarnings("ignore:.*were cut")
def test_every_text_has_a_finite_unit_vector(model, name):
    vector = model.encode(HARD[name], prompt_name="query")
    assert np.isfinite(vector).all()
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


@pytest.mark.parametrize("bad", [None, 3, 2.5, b"bytes"])
def test_what_is_not_a_string_is_named_by_its_index(model, bad):
    with pytest.raises(TypeError, match="text 1: expected a string"):
        model.encode(["fine", bad])
    with pytest.raises(TypeError):
        model.encode(bad)


def test_nan_weights_in_the_table_are_an_error_that_names_the_text(tmp_path):
    folder = checkpoints.write_tiny(tmp_path / "m")
    tensors = checkpoints.load_file(folder / "model.safetensors")
    model = EmbeddingGemma(folder)
    row = model.tokenize(["~"])[0][1]
    tensors["embed_tokens.weight"][row] = np.nan
    checkpoints.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EmbeddingGemmaError, match="text 2 came out as NaN, infinite or zero"):
        EmbeddingGemma(folder).encode(["a", "b", "~"])


def test_a_zero_vector_is_an_error(tmp_path):
    folder = checkpoints.write_tiny(tmp_path / "m")
    path = folder / "3_Dense" / "model.safetensors"
    head = checkpoints.load_file(path)
    checkpoints.save_file({"linear.weight": head["linear.weight"] * 0}, path)
    with pytest.raises(EmbeddingGemmaError, match="text 0 came out"):
        EmbeddingGemma(folder).encode(["a"])


@pytest.mark.parametrize("dim", [768, 512, 256, 128])
def test_vectors_are_truncated_then_of_unit_length(model, dim):
    full, cut = model.encode(TEXTS), model.encode(TEXTS, truncate_dim=dim)
    expected = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
    assert np.abs(cut - expected).max() < 1e-6
    assert np.abs(np.linalg.norm(cut, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("dim", [0, 1, 100, 767, 1024, -128, "256"])
def test_another_dimension_is_an_error_that_lists_the_right_ones(model, dim):
    with pytest.raises(EmbeddingGemmaError, match="768, 512, 256, 128"):
        model.encode("a", truncate_dim=dim)


def test_truncate_dim_of_the_constructor_is_the_default(tiny):
    model = EmbeddingGemma(tiny, truncate_dim=256)
    assert model.encode("a").shape == (256,)
    assert model.encode("a", truncate_dim=768).shape == (768,)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.filterwarnings("ignore")
def test_precisions_are_bit_for_bit_sentence_transformers(model, precision):
    st = pytest.importorskip("sentence_transformers.util", reason="needs the extra `reference`")
    texts = [f"text number {i} in the set" for i in range(40)]
    vectors = model.encode(texts)
    ours, theirs = (
        model.encode(texts, precision=precision),
        st.quantize_embeddings(vectors, precision),
    )
    assert ours.dtype == theirs.dtype
    assert (ours == theirs).all()
    ranges = np.stack([vectors[:20].min(0), vectors[:20].max(0)])
    assert (
        quantize_embeddings(vectors, precision, ranges)
        == st.quantize_embeddings(vectors, precision, ranges=ranges)
    ).all()


def test_precision_errors(model):
    with pytest.raises(EmbeddingGemmaError, match="expected precision float32, int8"):
        model.encode("a", precision="int4")
    with pytest.raises(EmbeddingGemmaError, match="one text has none"):
        model.encode("a", precision="int8")
    assert model.encode("a", precision="ubinary").shape == (96,)
    assert model.encode([], precision="binary").shape == (0, 96)


def test_prompts_are_the_checkpoints_and_the_model_cards(model, tiny):
    assert {**checkpoints.PROMPTS, **model.prompts} == model.prompts
    assert len(model.prompts) == 16
    assert model.prompts["QuestionAnswering"] == "task: question answering | query: "
    assert model.prompts["FactChecking"] == "task: fact checking | query: "
    path = tiny / "config_sentence_transformers.json"
    assert json.loads(path.read_text())["prompts"] == checkpoints.PROMPTS


@pytest.mark.parametrize("name", [*checkpoints.PROMPTS, "QuestionAnswering", "FactChecking"])
def test_a_prompt_is_put_in_front(model, name):
    expected = model.encode(model.prompts[name] + "the text")
    assert (model.encode("the text", prompt_name=name) == expected).all()


def test_query_document_and_title_prompts(model):
    texts = ["the one", "the other"]
    assert (model.encode_query(texts) == model.encode(texts, prompt_name="query")).all()
    assert (model.encode_document(texts) == model.encode(texts, prompt_name="document")).all()
    titled = model.encode_document(texts, ["Title", None])
    expected = ["title: Title | text: the one", "title: none | text: the other"]
    assert_near(titled, model.encode(expected))
    one = model.encode_document("the one", "Title")
    assert_near(one, titled[0])
    with pytest.raises(EmbeddingGemmaError, match="a title for each of 2 documents, got 1"):
        model.encode_document(texts, ["x"])


def test_prompt_wins_over_prompt_name(model):
    assert (model.encode("x", prompt="p: ", prompt_name="STS") == model.encode("p: x")).all()
    assert (model.encode_query("x", prompt_name="STS") == model.encode("x", prompt_name="STS")).all()


def test_an_unknown_prompt_is_an_error_that_lists_the_known_ones(model):
    with pytest.raises(EmbeddingGemmaError, match="'clustering'.*known prompts: .*Clustering"):
        model.encode("a", prompt_name="clustering")


def test_long_texts_are_cut_with_one_warning_that_counts_them(model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = model.encode(["y" * 3000, "short", "z" * 4000])
    assert [str(w.message) for w in caught] == [
        "2 of 3 texts were longer than 2,048 tokens and were cut"
    ]
    assert caught[0].filename == __file__
    # bos, 2,046 tokens, eos: as the reference cuts.
    assert_near(vectors[0], model.encode("y" * 2046))
    assert len(model.tokenize(["y" * 3000])[0]) == 2048
    assert model.count_tokens(["y" * 3000, ""]) == [3002, 2]


def test_max_length(tiny):
    model = EmbeddingGemma(tiny, max_length=16)
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 16 tokens"):
        model.encode(["y" * 20])
    with pytest.raises(EmbeddingGemmaError, match=r"from 3 to 2,048, got 4096"):
        EmbeddingGemma(tiny, max_length=4096)


def test_float16_is_refused_with_the_reason(tiny):
    with pytest.raises(EmbeddingGemmaError, match="activations reach 8e5"):
        EmbeddingGemma(tiny, dtype="float16")
    with pytest.raises(EmbeddingGemmaError, match="expected dtype"):
        EmbeddingGemma(tiny, dtype="int8")


HUGE = 10**5000  # Python prints no such number
NO_SIZES = {
    "float": 256.0,
    "string": "256",
    "bool": True,
    "array": np.array([256]),
    "list": [256],
    "huge": HUGE,
    "NaN": np.nan,
    "negative": -256,
    "nothing": 0,
    "dict": {},
}


@pytest.mark.parametrize("value", NO_SIZES.values(), ids=NO_SIZES)
@pytest.mark.parametrize("name", ["truncate_dim", "max_length"])
def test_sizes_are_whole_numbers(tiny, model, name, value):
    with pytest.raises((EmbeddingGemmaError, TypeError), match=f"^expected {name} ") as raised:
        EmbeddingGemma(tiny, **{name: value})
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200
    if name == "truncate_dim":
        with pytest.raises(EmbeddingGemmaError, match="^expected truncate_dim 768, 512, 256, 128, got"):
            model.encode("a", truncate_dim=value)


@pytest.mark.parametrize("kind", [np.int16, np.int64, np.uint64])
def test_numpys_whole_numbers_are_sizes(tiny, kind):
    model = EmbeddingGemma(tiny, truncate_dim=kind(256), max_length=kind(64))
    assert model.max_seq_length == 64 and model.encode("a").shape == (256,)
    assert model.encode("a", truncate_dim=kind(128)).shape == (128,)


@pytest.mark.parametrize(
    "dtype",
    [["float32"], np.array(["float32"]), np.float32, mx.float32, 32, "", "x" * 300, True],
    ids=repr,
)
def test_a_dtype_is_a_name(tiny, dtype):
    with pytest.raises(
        EmbeddingGemmaError, match="expected dtype 'float32' or 'bfloat16', got"
    ) as raised:
        EmbeddingGemma(tiny, dtype=dtype)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


NO_MODELS = {
    "no such user": ("~nosuchuser/x", "nosuchuser"),
    "a long name": ("x" * 300, "model: expected a path"),
    "a long path": ("/" + "x" * 300, "model: expected a path"),
    "a long id": ("a/" + "x" * 250, "neither a folder nor a hub id"),
    "NUL": ("a\0b", "model: expected a path"),
    "None": (None, "expected model to be"),
    "number": (3, "expected model to be"),
    "list": (["demo"], "expected model to be"),
    "bytes": (b"demo", "expected model to be"),
    "array": (np.array(["demo"] * 99), "expected model to be"),
}


@pytest.mark.parametrize(("name", "says"), NO_MODELS.values(), ids=NO_MODELS)
def test_what_names_no_model_is_one_line(name, says):
    with pytest.raises((EmbeddingGemmaError, TypeError), match=says) as raised:
        EmbeddingGemma(name, local_files_only=True)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_revision_is_a_name():
    with pytest.raises(TypeError, match="expected revision to be a string, got 3"):
        EmbeddingGemma("someone/something", revision=3, local_files_only=True)


def test_bfloat16_weights_compute_in_float32_on_the_cpu(tiny, tmp_path):
    if mx.default_device() != mx.cpu:
        pytest.skip("a GPU computes in bfloat16")
    model = EmbeddingGemma(checkpoints.as_mlx_community(tiny, tmp_path / "bf16"))
    assert model.dtype == "float32"
    cosine = (model.encode(TEXTS) * EmbeddingGemma(tiny).encode(TEXTS)).sum(axis=1)
    assert cosine.min() > 0.9995


def test_bfloat16_activations_stay_close(tiny):
    cosine = (
        EmbeddingGemma(tiny, dtype="bfloat16").encode(TEXTS) * EmbeddingGemma(tiny).encode(TEXTS)
    ).sum(axis=1)
    assert cosine.min() > 0.9995


def test_threads_may_share_a_model(model):
    """Each gets its own texts' vectors, whoever computes beside it."""
    jobs = [[f"text {i} of thread {j} " * (1 + i % 7) for i in range(30)] for j in range(6)]
    alone = [model.encode(texts) for texts in jobs]
    with ThreadPoolExecutor(6) as pool:
        for ours, theirs in zip(pool.map(model.encode, jobs), alone, strict=True):
            assert_near(ours, theirs)


def test_similarity_is_the_cosine(model):
    a, b = model.encode(TEXTS[:3]), model.encode(TEXTS[3:6])
    assert np.allclose(model.similarity(a, b), a @ b.T, atol=1e-6)
    assert np.allclose(model.similarity(2 * a[0], mx.array(b)), a[:1] @ b.T, atol=1e-6)
    assert np.allclose(model.similarity_pairwise(a, 3 * b), (a * b).sum(1), atol=1e-6)


def test_sentence_transformers_argument_names(model):
    expected = model.encode(TEXTS)
    assert (model.encode(sentences=TEXTS, batch_size=32, normalize_embeddings=True) == expected).all()
    assert model.encode(sentences="a").shape == (768,)
    assert isinstance(model.encode(TEXTS, return_mlx=True), mx.array)


def test_progress_bar_on_stderr_when_asked(model, capfd):
    model.encode(["a"] * 5, show_progress_bar=False)
    assert capfd.readouterr() == ("", "")


def test_save_pretrained_copies_what_was_loaded(model, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    assert (EmbeddingGemma(tmp_path / "copy").encode(TEXTS) == model.encode(TEXTS)).all()
    with pytest.raises(EmbeddingGemmaError, match="exists"):
        model.save_pretrained(tmp_path / "copy")


@pytest.mark.filterwarnings("ignore")
def test_equals_sentence_transformers_end_to_end(tiny, model):
    """Tokenizer, prompts, pooling, head and truncation together."""
    reference = pytest.importorskip("reference", reason="needs the extra `reference`")
    theirs = reference.sentence_transformer(tiny)
    texts = [*TEXTS, "y" * 3000]
    for name in ("query", "document", "STS"):
        ours = model.encode(texts, prompt_name=name)
        assert_near(ours, theirs.encode(texts, prompt_name=name))
    cut = theirs.encode(texts, truncate_dim=256, normalize_embeddings=True)
    assert_near(model.encode(texts, truncate_dim=256), cut)
