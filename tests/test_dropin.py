"""Code written for sentence-transformers runs here: each claim against the real one on the demo."""

import checkpoints
import numpy as np
import pytest
from vectors import UNIT, assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

TEXTS = ["a text", "another, longer text here", "", "a text"]


@pytest.fixture(scope="module")
def ours(demo) -> EmbeddingGemma:
    return EmbeddingGemma(demo)


@pytest.fixture(scope="module")
def theirs(demo):
    reference = pytest.importorskip("reference", reason="needs the extra `reference`")
    return reference.sentence_transformer(demo)


def same(mine, expected) -> bool:
    """Alike in kind, shape and value."""
    if isinstance(expected, list):
        return len(mine) == len(expected) and all(map(same, mine, expected))
    assert type(mine).__module__.split(".")[0] == type(expected).__module__.split(".")[0]
    assert mine.dtype == expected.dtype
    mine, expected = np.asarray(mine), np.asarray(expected)
    return mine.shape == expected.shape and float(np.abs(mine - expected).max(initial=0)) <= UNIT


CALLS = {
    "a list": {},
    "the query's prompt": {"prompt_name": "query"},
    "a prompt": {"prompt": "p: "},
    "an empty prompt": {"prompt": ""},
    "batch_size": {"batch_size": 1},
    "a numpy batch_size": {"batch_size": np.int64(3)},
    "normalised": {"normalize_embeddings": True},
    "truncated, normalised": {"truncate_dim": 256, "normalize_embeddings": True},
    "truncated, not normalised": {"truncate_dim": 256, "normalize_embeddings": False},
    "a tensor": {"convert_to_tensor": True},
    "a tensor, numpy said too": {"convert_to_tensor": True, "convert_to_numpy": True},
    "no numpy": {"convert_to_numpy": False},
    "a truncated tensor": {
        "convert_to_tensor": True,
        "truncate_dim": 128,
        "normalize_embeddings": True,
    },
    "the CPU": {"device": "cpu"},
    "the CPU, numbered": {"device": "cpu:0"},
    "no progress bar": {"show_progress_bar": False},
    "a task": {"task": "query"},
    "no precision": {"precision": None},
    "no pool": {"pool": None, "chunk_size": None},
}


@pytest.mark.parametrize("texts", [TEXTS, "a text"], ids=type)
@pytest.mark.parametrize("call", CALLS)
def test_calls_give_what_they_give_there(ours, theirs, call, texts):
    assert same(ours.encode(texts, **CALLS[call]), theirs.encode(texts, **CALLS[call]))


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize(
    "texts", [tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), np.str_("a")]
)
def test_what_is_one_text_and_what_are_many(ours, theirs, method, texts):
    assert same(getattr(ours, method)(texts), getattr(theirs, method)(texts))


@pytest.mark.parametrize("precision", ["binary", "ubinary", "int8", "uint8"])
@pytest.mark.parametrize("form", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}])
def test_precisions_give_what_they_give_there(ours, theirs, precision, form):
    """Within a step: where a value sits on its edge, the last bit decides."""
    options, texts = dict(precision=precision, **form), [f"text number {i}" for i in range(20)]
    mine, expected = ours.encode(texts, **options), theirs.encode(texts, **options)
    assert isinstance(mine, type(expected)) and len(mine) == len(expected)
    mine, expected = (np.stack([np.asarray(row) for row in rows]) for rows in (mine, expected))
    assert mine.dtype == expected.dtype and mine.shape == expected.shape
    if precision in ("int8", "uint8"):
        assert np.abs(mine.astype(int) - expected).max() <= 1
    assert (mine != expected).mean() < 0.1


def test_single_packed_bits(ours, theirs):
    for precision in ("binary", "ubinary"):
        mine = ours.encode("a text", precision=precision)
        assert (mine == theirs.encode("a text", precision=precision)).all()


@pytest.mark.parametrize("name", ["inputs", "sentences"])
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_the_texts_by_another_name(ours, theirs, method, name):
    mine = getattr(ours, method)(**{name: TEXTS})
    assert same(mine, getattr(theirs, method)(TEXTS))
    assert same(getattr(ours, method)(texts=TEXTS), mine)


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_texts_under_two_names_or_none_are_an_error(ours, method):
    call = getattr(ours, method)
    with pytest.raises(TypeError, match="expected texts, .*got none"):
        call()
    with pytest.raises(TypeError, match="got none"):
        call(None)
    with pytest.raises(TypeError, match="got texts and sentences"):
        call("a", sentences="b")
    with pytest.raises(TypeError, match="got inputs and sentences"):
        call(inputs=["a"], sentences=["b"])
    with pytest.raises(TypeError, match="got texts and inputs"):
        call([], inputs=[])


def test_titles_and_documents_by_another_name(ours):
    expected = ours.encode_document(TEXTS, titles=["x"] * 4)
    assert (ours.encode_document(sentences=TEXTS, titles=["x"] * 4) == expected).all()
    assert (ours.encode_document(inputs=TEXTS, titles=iter(["x"] * 4)) == expected).all()


@pytest.mark.parametrize("none", [{"prompt_name": None}, {"prompt": None}, {}])
def test_a_prompt_that_is_none_keeps_that_of_the_method(ours, theirs, none):
    for method in ("encode_query", "encode_document"):
        assert same(getattr(ours, method)(TEXTS, **none), getattr(theirs, method)(TEXTS, **none))


@pytest.mark.parametrize(
    "options",
    [{"prompt": ""}, {"prompt": "p: "}, {"prompt_name": "STS"}, {"prompt_name": "document"}],
)
def test_a_prompt_that_is_given_wins_over_that_of_the_method(ours, theirs, options):
    for method in ("encode_query", "encode_document"):
        assert same(getattr(ours, method)(TEXTS, **options), getattr(theirs, method)(TEXTS, **options))


@pytest.mark.parametrize("prompts", [{}, {"query": ""}, {"query": None}], ids=str)
def test_a_query_prompt_that_is_missing_is_none_at_all(ours, theirs, monkeypatch, prompts):
    """Nor does the default one come in its place."""
    monkeypatch.setattr(ours, "prompts", {"x": "x: ", **prompts})
    monkeypatch.setattr(ours, "default_prompt_name", "x", raising=False)
    monkeypatch.setattr(theirs, "prompts", {"query": "", "document": "", "x": "x: "})
    monkeypatch.setattr(theirs, "default_prompt_name", "x")
    for method in ("encode_query", "encode_document", "encode"):
        assert same(getattr(ours, method)(TEXTS), getattr(theirs, method)(TEXTS))
    assert same(ours.encode(TEXTS, prompt_name=None), theirs.encode(TEXTS, prompt="x: "))
    assert same(ours.encode(TEXTS, prompt=""), theirs.encode(TEXTS, prompt=""))


@pytest.mark.parametrize("texts", [TEXTS, "a text", []], ids=["a list", "a string", "nothing"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_name": "query"},
        {"truncate_dim": 128},
        {"normalize_embeddings": True},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_token_embeddings_are_those_of_the_real_tokens(ours, theirs, texts, options):
    """The prompt's, bos and eos among them; never truncated or normalised. Numbers of up to 10."""
    options = dict(output_value="token_embeddings", **options)
    mine, expected = ours.encode(texts, **options), theirs.encode(texts, **options)
    if isinstance(texts, str):
        mine, expected = [mine], [expected]
    assert len(mine) == len(expected)
    for a, b in zip(mine, expected, strict=True):
        assert a.shape == b.shape and a.dtype == np.float32
        assert np.abs(a - b.numpy()).max() < 1e-4
    as_tensors = ours.encode(texts, convert_to_tensor=True, **options)
    for a, b in zip([as_tensors] if isinstance(texts, str) else as_tensors, expected, strict=True):
        assert type(a) is type(b) and a.shape == b.shape


def test_token_embeddings_of_a_long_text_are_cut(ours, theirs):
    ours.max_seq_length = theirs.max_seq_length = 8
    try:
        long = "a b c d e f g h i j k l m n"
        with pytest.warns(UserWarning, match="1 of 1 texts were longer than 8 tokens"):
            mine = ours.encode(long, output_value="token_embeddings")
        expected = theirs.encode(long, output_value="token_embeddings").numpy()
        assert mine.shape == expected.shape == (8, 256)
        assert np.abs(mine - expected).max() < 1e-4
        with pytest.warns(UserWarning, match="were cut"):
            assert same(ours.encode(long), theirs.encode(long))
    finally:
        ours.max_seq_length = theirs.max_seq_length = 2048


def test_token_embeddings_that_are_no_numbers_name_their_text(tmp_path):
    folder = checkpoints.write_tiny(tmp_path / "m")
    row = EmbeddingGemma(folder).tokenize("~")[1]
    tensors = checkpoints.load_file(folder / "model.safetensors")
    tensors["embed_tokens.weight"][row] = np.nan
    checkpoints.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EmbeddingGemmaError, match="text 2 came out as NaN, infinite or zero"):
        EmbeddingGemma(folder).encode(["a", "a", "~"], output_value="token_embeddings")


def test_equal_texts_have_token_embeddings_of_their_own(ours):
    first, second = ours.encode(["a", "a"], output_value="token_embeddings")
    first[:] = 0
    assert second.any()


@pytest.mark.filterwarnings("ignore")
def test_names_that_say_what_they_say_there(ours, theirs):
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.get_sentence_embedding_dimension() == theirs.get_sentence_embedding_dimension()
    assert ours.max_seq_length == theirs.max_seq_length == ours.get_max_seq_length()
    assert ours.similarity_fn_name == theirs.similarity_fn_name
    assert ours.default_prompt_name == theirs.default_prompt_name
    assert theirs.prompts.items() <= ours.prompts.items()
    assert ours.truncate_dim == theirs.truncate_dim
    assert ours.get_backend() == "mlx"
    assert ours.eval() is ours and ours.train(False) is ours
    assert not hasattr(ours, "tokenizer")


def test_names_that_are_set_as_there(demo, theirs):
    model = EmbeddingGemma(demo)
    with model.truncate_embeddings(256), theirs.truncate_embeddings(256):
        assert model.truncate_dim == theirs.truncate_dim == 256
        assert model.get_embedding_dimension() == theirs.get_embedding_dimension() == 256
        assert same(model.encode("a"), theirs.encode("a", normalize_embeddings=True))
        with model.truncate_embeddings(None), theirs.truncate_embeddings(None):
            assert same(model.encode("a"), theirs.encode("a"))
        assert model.truncate_dim == theirs.truncate_dim == 256
    assert model.get_embedding_dimension() == 768
    model.truncate_dim = 128
    assert model.encode("a").shape == (128,)
    for wrong in (100, "128", 128.0, True):
        with pytest.raises(EmbeddingGemmaError, match="expected truncate_dim 768, 512, 256, 128, got"):
            model.truncate_dim = wrong
    for wrong in ("8", 8.0, True, [8], 1, 4096):
        with pytest.raises((EmbeddingGemmaError, TypeError), match="expected max_length"):
            model.max_seq_length = wrong
    model.max_seq_length = np.int32(8)
    assert model.max_length == 8
    with pytest.raises(EmbeddingGemmaError, match="expected similarity_fn_name cosine, dot, euclid"):
        model.similarity_fn_name = "maxsim"


REFUSED = {
    "half": "float16 overflows",
    "bfloat16": "dtype",
    "double": "dtype",
    "train": "finetune",
    "fit": "finetune",
    "forward": "call encode",
    "__call__": "call encode",
    "preprocess": "tokenize",
    "compile": "call encode",
    "start_multi_process_pool": "in one process",
    "stop_multi_process_pool": "in one process",
    "encode_multi_process": "in one process",
    "push_to_hub": "hf upload",
    "save_to_hub": "hf upload",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_so_in_one_line(ours, theirs, name):
    assert hasattr(theirs, name)
    with pytest.raises(EmbeddingGemmaError, match=REFUSED[name]) as raised:
        getattr(ours, name)()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool": {}}, "expected no pool"),
        ({"chunk_size": 100}, "expected no chunk_size"),
        ({"processing_kwargs": {"text": {}}}, "expected no processing_kwargs"),
        ({"output_value": None}, "expected output_value"),
        ({"output_value": "nonsense"}, "expected output_value"),
        ({"output_value": ["token_embeddings"]}, "expected output_value"),
        ({"output_value": "token_embeddings", "precision": "int8"}, "token embeddings in float32"),
        ({"return_mlx": True, "convert_to_tensor": True}, "got both"),
        ({"device": "tpu"}, "expected device 'cpu'"),
        ({"device": "cpu:1"}, "expected device 'cpu'"),
        ({"device": ["cpu", "cpu"]}, "expected device 'cpu'"),
        ({"device": []}, "expected device 'cpu'"),
        ({"device": 0}, "expected device 'cpu'"),
        ({"device": ""}, "expected device 'cpu'"),
        ({"prompt_name": ""}, "no prompt is called ''"),
        ({"prompt_name": "x" * 300}, "no prompt is called 'xxx"),
        ({"prompt_name": ["query"]}, "no prompt is called"),
        ({"prompt_name": 3}, "no prompt is called"),
        ({"prompt": 3}, "expected prompt to be a string"),
        ({"prompt": ["p: "]}, "expected prompt to be a string"),
        ({"prompt": b"p: "}, "expected prompt to be a string"),
    ],
    ids=str,
)
def test_arguments_that_change_nothing_here_are_refused(ours, options, says):
    for method in (ours.encode, ours.encode_query, ours.encode_document):
        with pytest.raises((EmbeddingGemmaError, TypeError), match=says) as raised:
            method(TEXTS, **options)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 800


NO_NUMBERS = [
    0,
    -1,
    10**30,
    10**5000,
    "a",
    "8",
    1.5,
    2.0,
    True,
    np.True_,
    [8],
    np.arange(99),
    np.nan,
    {},
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=range(len(NO_NUMBERS)))
@pytest.mark.parametrize("name", ["batch_size", "batch_tokens"])
def test_batches_are_counted_in_whole_numbers(ours, name, value):
    with pytest.raises(
        (EmbeddingGemmaError, TypeError), match=f"^expected {name} (from 1|to be a whole)"
    ) as raised:
        ours.encode(["a"], **{name: value})
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


@pytest.mark.parametrize("name", ["batch_size", "batch_tokens"])
def test_large_and_numpy_numbers_are_fine(ours, name):
    for value in (1, 2**31, 2**63 - 1, np.int8(1), np.uint64(2**63 - 1)):
        assert same(ours.encode(TEXTS, **{name: value}), ours.encode(TEXTS))


def test_an_unknown_keyword_is_pythons_type_error(ours):
    for method in (ours.encode, ours.encode_query, ours.encode_document):
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            method("a", nonsense=1)


def test_the_gpu_has_its_names(ours, monkeypatch):
    assert ours.device == "cpu" and ours.to("cpu") is ours.cpu() is ours
    with pytest.raises(EmbeddingGemmaError, match="expected device 'cpu'"):
        ours.cuda()
    monkeypatch.setattr("mlx_embeddinggemma.runtime.on_gpu", lambda: True)
    assert ours.device in ("mps", "cuda")
    assert ours.to("gpu") is ours.to(f"{ours.device}:0") is ours
    with pytest.raises(EmbeddingGemmaError, match="expected device"):
        ours.cpu()


def test_float_is_what_it_is(ours):
    assert ours.float() is ours


def test_without_torch_tensors_are_an_error_that_says_what_to_take(ours, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(EmbeddingGemmaError, match="convert_to_tensor=True gives torch's tensors, and"):
        ours.encode("a", convert_to_tensor=True)
    with pytest.raises(EmbeddingGemmaError, match="convert_to_numpy=False .* return_mlx=True"):
        ours.encode("a", convert_to_numpy=False)
    assert ours.encode("a", convert_to_numpy=False, return_mlx=True).shape == (768,)


def test_nothing_imports_torch_unless_asked_to():
    import subprocess
    import sys

    code = (
        "import sys; from mlx_embeddinggemma import EmbeddingGemma; m = EmbeddingGemma('demo');"
        "v = m.encode(['a', 'b']); m.similarity(v, v); assert 'torch' not in sys.modules;"
        "assert 'pandas' not in sys.modules; m.encode('a', convert_to_tensor=True);"
        "assert 'torch' in sys.modules"
    )
    pytest.importorskip("torch", reason="needs the extra `reference`")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_their_helpers_take_the_model(ours, theirs):
    util = pytest.importorskip("sentence_transformers.util", reason="needs the extra `reference`")
    texts = ["a dog runs", "a cat sleeps", "the dog is running", "stocks fell"]
    mine, expected = (util.paraphrase_mining(model, texts) for model in (ours, theirs))
    assert [pair[1:] for pair in mine] == [pair[1:] for pair in expected]
    query, corpus = (
        ours.encode_query("dogs", convert_to_tensor=True),
        ours.encode_document(texts, convert_to_tensor=True),
    )
    hits = util.semantic_search(query, corpus)[0]
    expected = util.semantic_search(
        theirs.encode_query("dogs", convert_to_tensor=True),
        theirs.encode_document(texts, convert_to_tensor=True),
    )[0]
    assert [hit["corpus_id"] for hit in hits] == [hit["corpus_id"] for hit in expected]


def test_their_evaluators_take_the_model(ours, theirs, monkeypatch):
    """All but the note that they make in a model's card at the end."""
    evaluation = pytest.importorskip("sentence_transformers.evaluation", reason="needs `reference`")
    monkeypatch.setattr(
        evaluation.SentenceEvaluator, "store_metrics_in_model_card_data", lambda *_, **__: None
    )
    queries, corpus = {"q": "dogs"}, {"1": "a dog runs", "2": "stocks fell", "3": "a cat sleeps"}
    texts = list(corpus.values())
    for evaluator in (
        evaluation.InformationRetrievalEvaluator(queries, corpus, {"q": {"1"}}, write_csv=False),
        evaluation.EmbeddingSimilarityEvaluator(texts, texts[::-1], [0.1, 1, 0.2], write_csv=False),
        evaluation.BinaryClassificationEvaluator(texts, texts[::-1], [0, 1, 0], write_csv=False),
    ):
        assert evaluator(ours) == pytest.approx(evaluator(theirs), abs=1e-5)


def test_similarity_of_tensors_is_a_tensor(ours, theirs):
    torch = pytest.importorskip("torch", reason="needs the extra `reference`")
    a, b = ours.encode(TEXTS, convert_to_tensor=True), ours.encode(TEXTS)
    for one, other in [(a, a), (a, b), (b, a), (list(a), b), (a[0], b)]:
        assert same(ours.similarity(one, other), theirs.similarity(one, torch.as_tensor(other)))
        pairs = ours.similarity_pairwise(one, other)
        assert isinstance(pairs, torch.Tensor) and pairs.shape == (4,)
    assert isinstance(ours.similarity(b, b), np.ndarray)


WORDS = {"default_prompt_name": "no prompt is called", "similarity_fn_name": "maxsim"}


def test_arguments_of_a_model_are_honoured_or_refused_by_name(tiny):
    model = EmbeddingGemma(
        tiny,
        device="cpu",
        prompts={"mine": "my: "},
        default_prompt_name="mine",
        similarity_fn_name="dot",
        trust_remote_code=False,
        token=None,
        model_kwargs={},
    )
    plain = EmbeddingGemma(tiny)
    assert_near(model.encode("a"), plain.encode("my: a"))
    assert_near(model.encode_query("a"), plain.encode_query("a"))
    assert model.similarity_fn_name == "dot"
    for name, value in {
        "device": "cuda:3",
        "cache_folder": "here",
        "token": "hf_x",
        "trust_remote_code": True,
        "model_kwargs": {"dtype": "float16"},
        "backend": "onnx",
        "default_prompt_name": "no such prompt",
        "similarity_fn_name": "maxsim",
    }.items():
        with pytest.raises(EmbeddingGemmaError, match=WORDS.get(name, name)):
            EmbeddingGemma(tiny, **{name: value})
    with pytest.raises(TypeError, match="no argument 'modle'"):
        EmbeddingGemma(modle=tiny)
    with pytest.raises(TypeError, match="expected prompts to be strings by name"):
        EmbeddingGemma(tiny, prompts=["query"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 4096),
        ("max_length", 1),
        ("max_length", "5"),
        ("max_length", 2.5),
        ("default_prompt_name", "Search"),
        ("prompts", None),
        ("prompts", {"query": 5}),
        ("similarity_fn_name", "maxsim"),
        ("truncate_dim", 5),
    ],
)
def test_what_is_set_by_hand_is_checked_when_it_is_set(tiny, name, value):
    """And not when a copy of the model cannot be loaded."""
    model = EmbeddingGemma(tiny)
    before = getattr(model, name)
    with pytest.raises((EmbeddingGemmaError, TypeError), match="expected|no prompt is called"):
        setattr(model, name, value)
    assert getattr(model, name) == before


def test_bits_that_lost_their_type_are_not_compared_as_floats(tiny):
    model = EmbeddingGemma(tiny)
    bits = model.encode(["a", "b"], precision="ubinary")
    assert model.similarity(bits, bits)[0, 0] == 1
    for lost in (bits.tolist(), bits.astype(int)):
        with pytest.raises(EmbeddingGemmaError, match="np.uint8. for packed bits"):
            model.similarity(lost, lost)
