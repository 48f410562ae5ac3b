"""Settings beside the weights: as sentence-transformers honours them on the same folder, or refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from mlx_embeddinggemma.convert import convert

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.finetune.export import export
from mlx_embeddinggemma.finetune.network import tensors, trainable
from mlx_embeddinggemma.settings import read_settings, write_settings
from mlx_embeddinggemma.similarity import NAMES, all_pairs, each_pair

CLOSE = 2e-6
BERT, TOKENIZER = "sentence_bert_config.json", "tokenizer_config.json"
MODEL, VOCABULARY = "config_sentence_transformers.json", "tokenizer.json"
TEXTS = [
    "The Quick Brown fox jumps over the lazy dog",
    "Capitals stay in <EOS>, special tokens in <eos>: ΣΊΣΥΦΟΣ in İSTANBUL",
    " ".join(f"word{i}" for i in range(30)),
    "",
]
NO_LENGTH = {"max_seq_length": None}


def edited(source: Path, folder: Path, changes: dict) -> Path:
    """A copy with other files: new values, whole contents as bytes, or None for no file."""
    shutil.copytree(source, folder)
    for name, change in changes.items():
        path = folder / name
        if change is None:
            path.unlink()
        elif isinstance(change, bytes):
            path.write_bytes(change)
        else:
            old = json.loads(path.read_text()) if path.exists() else {}
            checkpoints.write_json(path, old | change)
    return folder


def truncation(side: str) -> dict:
    return {"direction": side, "max_length": 9, "strategy": "LongestFirst", "stride": 0}


HONOURED = {
    "as it is": {},
    "a length": {BERT: {"max_seq_length": 16}},
    "a length of the tokenizer": {BERT: NO_LENGTH, TOKENIZER: {"model_max_length": 16}},
    "no file of the module": {BERT: None, TOKENIZER: {"model_max_length": 16}},
    "an empty file of the module": {BERT: b"{}", TOKENIZER: {"model_max_length": 16}},
    "an older name of the file": {BERT: None, "sentence_roberta_config.json": {"max_seq_length": 16}},
    "two lengths": {BERT: {"max_seq_length": 24}, TOKENIZER: {"model_max_length": 16}},
    "no limit, a float": {BERT: NO_LENGTH, TOKENIZER: {"model_max_length": 1e30}},
    "no limit, a whole number": {BERT: NO_LENGTH, TOKENIZER: {"model_max_length": int(1e30)}},
    "no limit, null": {BERT: NO_LENGTH, TOKENIZER: {"model_max_length": None}},
    "more than the network's": {BERT: NO_LENGTH, TOKENIZER: {"model_max_length": 8192}},
    "cut on the left": {BERT: {"max_seq_length": 16}, TOKENIZER: {"truncation_side": "left"}},
    "cut as tokenizer.json says": {
        BERT: {"max_seq_length": 16},
        VOCABULARY: {"truncation": truncation("Left")},
    },
    "cut as tokenizer_config.json says": {
        BERT: {"max_seq_length": 16},
        TOKENIZER: {"truncation_side": "right"},
        VOCABULARY: {"truncation": truncation("Left")},
    },
    "lower case": {BERT: {"do_lower_case": True}},
    "lower case, a true string": {BERT: {"do_lower_case": "false"}},
    "no lower case, null": {BERT: {"do_lower_case": None}},
    "lower case of the tokenizer": {TOKENIZER: {"do_lower_case": True}},  # which nobody reads
    "a default prompt": {MODEL: {"default_prompt_name": "STS"}},
    "a default prompt, and no query": {
        MODEL: {"default_prompt_name": "p", "prompts": {"p": "one: ", "passage": "two: "}}
    },
    "an empty default prompt": {MODEL: {"default_prompt_name": "query", "prompts": {"query": None}}},
    "no prompts": {MODEL: {"prompts": {}}},
    "prompts missing": {MODEL: b"{}"},
    "a prompt null": {MODEL: {"prompts": {"query": None, "document": "d: "}}},
    "a prompt empty": {MODEL: {"prompts": {"query": "", "document": "d: "}}},
    "prompts of no file": {MODEL: None},
    "other names of the document's prompt": {MODEL: {"prompts": {"passage": "p: ", "corpus": "c: "}}},
    "fewer dimensions": {MODEL: {"truncate_dim": 256}},
    "dimensions nobody trained": {MODEL: {"truncate_dim": 100}},
    "more dimensions than there are": {MODEL: {"truncate_dim": 1000}},
    "the model's type": {MODEL: {"model_type": "SentenceTransformer"}},
    "as 6.2 saves it": {
        BERT: json.dumps(
            {
                "transformer_task": "feature-extraction",
                "modality_config": {
                    "text": {"method": "forward", "method_output_name": "last_hidden_state"}
                },
                "module_output_name": "token_embeddings",
            }
        ).encode(),
        TOKENIZER: {"model_max_length": 16},
    },
    **{f"similarity {name}": {MODEL: {"similarity_fn_name": name}} for name in NAMES},
    "no similarity": {MODEL: {"similarity_fn_name": None}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HONOURED)
def test_a_setting_is_honoured_as_sentence_transformers_does(name, tiny, tmp_path):
    reference = pytest.importorskip("reference", reason="needs the extra `reference`")
    folder = edited(tiny, tmp_path / "m", HONOURED[name])
    ours, theirs = EmbeddingGemma(folder), reference.sentence_transformer(folder)
    assert ours.max_length == theirs.max_seq_length
    assert ours.default_prompt_name == theirs.default_prompt_name
    assert ours.similarity_fn_name == theirs.similarity_fn_name
    assert {**ours.prompts, **theirs.prompts} == ours.prompts
    found = []
    for method in ("encode", "encode_query", "encode_document"):
        expected = getattr(theirs, method)(TEXTS, normalize_embeddings=True)
        found.append(getattr(ours, method)(TEXTS))
        assert found[-1].shape == expected.shape
        assert np.abs(found[-1] - expected).max() <= CLOSE, method
    assert np.abs(ours.encode(TEXTS, prompt="") - theirs.encode(TEXTS, prompt="")).max() <= 2
    score = ours.similarity(found[0], found[1])
    np.testing.assert_allclose(score, theirs.similarity(found[0], found[1]).numpy(), atol=1e-3)
    score = ours.similarity_pairwise(found[0], found[1])
    np.testing.assert_allclose(score, theirs.similarity_pairwise(found[0], found[1]), atol=1e-5)


REFUSED = [
    (BERT, {"max_seq_length": "512"}, "max_seq_length a whole number from 3 to 2,048, got '512'"),
    (BERT, {"max_seq_length": 512.0}, "max_seq_length a whole number .* got 512.0"),
    (BERT, {"max_seq_length": True}, "max_seq_length a whole number .* got True"),
    (BERT, {"max_seq_length": [512]}, "max_seq_length a whole number"),
    (BERT, {"max_seq_length": 0}, "max_seq_length a whole number"),
    (BERT, {"max_seq_length": -1}, "max_seq_length a whole number"),
    (BERT, {"max_seq_length": 4096}, "max_seq_length a whole number .* got 4096"),
    (BERT, b"[]", "sentence_bert_config.json: expected a JSON object, got \\[\\]"),
    (BERT, b'"512"', "sentence_bert_config.json: expected a JSON object, got '512'"),
    (BERT, b"null", "sentence_bert_config.json: expected a JSON object, got None"),
    (BERT, b"{", "sentence_bert_config.json is not JSON"),
    (BERT, b"\xff\xfe{\x00}\x00", "sentence_bert_config.json is not JSON"),
    (BERT, {"query_length": 32}, "query_length 32 is not computed here"),
    (BERT, {"document_length": 32}, "document_length 32 is not computed here"),
    (BERT, {"query_expansion": {"length": 32}}, "query_expansion .* is not computed here"),
    (BERT, {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs .* is not computed"),
    (BERT, {"tokenizer_args": {"model_max_length": 9}}, "tokenizer_args .* is not computed here"),
    (BERT, {"model_args": {"dtype": "bfloat16"}}, "model_args .* is not computed here"),
    (BERT, {"tokenizer_name_or_path": "bert"}, "tokenizer_name_or_path 'bert' is not computed here"),
    (BERT, {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask' is not computed here"),
    (BERT, {"module_output_name": "sentence_embedding"}, "module_output_name .* is not computed here"),
    (BERT, {"modality_config": {"text": {"method": "x"}}}, "modality_config .* is not computed here"),
    (BERT, {"nonsense": 1}, "nonsense 1 is not computed here"),
    (TOKENIZER, {"model_max_length": "16"}, "model_max_length a whole number"),
    (TOKENIZER, {"model_max_length": 16.0}, "model_max_length a whole number"),
    (TOKENIZER, {"model_max_length": [3]}, "model_max_length a whole number"),
    (TOKENIZER, {"model_max_length": 0}, "model_max_length a whole number"),
    (TOKENIZER, {"model_max_length": float("nan")}, "model_max_length a whole number"),
    (TOKENIZER, {"truncation_side": "Left"}, "truncation_side 'left' or 'right', got 'Left'"),
    (TOKENIZER, {"truncation_side": None}, "truncation_side 'left' or 'right', got None"),
    (TOKENIZER, {"truncation_side": ["left"]}, "truncation_side 'left' or 'right', got"),
    (TOKENIZER, {"split_special_tokens": True}, "split_special_tokens is not computed here"),
    (TOKENIZER, b"[1]", "tokenizer_config.json: expected a JSON object"),
    (MODEL, b"[]", "config_sentence_transformers.json: expected a JSON object"),
    (MODEL, {"prompts": ["query"]}, "expected prompts to be an object of texts by name"),
    (MODEL, {"prompts": {"query": 3}}, "expected prompts to be an object of texts by name"),
    (MODEL, {"prompts": "query: "}, "expected prompts to be an object of texts by name"),
    (MODEL, {"default_prompt_name": "nope"}, "expected default_prompt_name .* got 'nope'"),
    (MODEL, {"default_prompt_name": ""}, "expected default_prompt_name .* got ''"),
    (MODEL, {"default_prompt_name": ["query"]}, "expected default_prompt_name"),
    (MODEL, {"truncate_dim": "256"}, "expected truncate_dim .* got '256'"),
    (MODEL, {"truncate_dim": 256.0}, "expected truncate_dim .* got 256.0"),
    (MODEL, {"truncate_dim": True}, "expected truncate_dim .* got True"),
    (MODEL, {"truncate_dim": 0}, "expected truncate_dim .* got 0"),
    (MODEL, {"truncate_dim": -1}, "expected truncate_dim .* got -1"),
    (MODEL, {"similarity_fn_name": "maxsim"}, "expected similarity_fn_name cosine, .* got 'maxsim'"),
    (MODEL, {"similarity_fn_name": ["dot"]}, "expected similarity_fn_name"),
    (MODEL, {"model_type": "SparseEncoder"}, "expected model_type 'SentenceTransformer', got"),
]


@pytest.mark.parametrize(("file", "change", "message"), REFUSED)
def test_what_is_not_computed_here_or_no_value_at_all_is_one_line(
    file, change, message, tiny, tmp_path
):
    changes = {file: change} if file == BERT else {BERT: NO_LENGTH} | {file: change}
    folder = edited(tiny, tmp_path / "m", changes)
    for load in (EmbeddingGemma, lambda folder: convert(folder, tmp_path / "out", dry_run=True)):
        with pytest.raises(EmbeddingGemmaError, match=message) as caught:
            load(folder)
        assert str(caught.value).count("\n") == 0 and len(str(caught.value)) < 500


@pytest.mark.parametrize("file", [BERT, TOKENIZER, MODEL, "config.json", "modules.json"])
def test_a_byte_order_mark_is_none_of_a_files_content(file, tiny, tmp_path):
    folder = edited(tiny, tmp_path / "m", {file: b"\xef\xbb\xbf" + (tiny / file).read_bytes()})
    ours, plain = EmbeddingGemma(folder), EmbeddingGemma(tiny)
    assert ours._settings == plain._settings
    assert np.abs(ours.encode(TEXTS) - plain.encode(TEXTS)).max() <= CLOSE


UNUSUAL = {
    BERT: {"max_seq_length": 16, "do_lower_case": True},
    TOKENIZER: {"truncation_side": "left"},
    MODEL: {
        "default_prompt_name": "p",
        "prompts": {"p": "One: "},
        "truncate_dim": 100,
        "similarity_fn_name": "manhattan",
    },
}


@pytest.fixture(scope="module")
def unusual(tiny, tmp_path_factory) -> Path:
    return edited(tiny, tmp_path_factory.mktemp("unusual") / "m", UNUSUAL)


def converted(folder: Path, output: Path) -> Path:
    convert(folder, output, recipe="fp32")
    return output


def finetuned(folder: Path, output: Path) -> Path:
    """As `finetune` writes it after no step at all."""
    checkpoint = open_checkpoint(folder)
    output.mkdir()
    export(checkpoint, tensors(trainable(checkpoint)), output, read_settings(folder, 2048), "")
    return output


def saved(folder: Path, output: Path) -> Path:
    EmbeddingGemma(folder).save_pretrained(output)
    return output


CARRIERS = [converted, finetuned, saved]


@pytest.mark.filterwarnings("ignore:.*longer than")
@pytest.mark.parametrize("carry", CARRIERS)
@pytest.mark.parametrize("without", [(), (MODEL,), (MODEL, BERT, TOKENIZER)])
def test_settings_are_carried_on(carry, without, unusual, tmp_path):
    source = edited(unusual, tmp_path / "m", dict.fromkeys(without))
    copy = carry(source, tmp_path / "copy")
    before, after = EmbeddingGemma(source), EmbeddingGemma(copy)
    assert after._settings == before._settings
    for method in ("encode", "encode_query"):
        difference = getattr(after, method)(TEXTS) - getattr(before, method)(TEXTS)
        assert np.abs(difference).max() <= CLOSE


@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_reads_the_settings_that_finetune_writes(unusual, tmp_path):
    reference = pytest.importorskip("reference", reason="needs the extra `reference`")
    theirs = reference.sentence_transformer(finetuned(unusual, tmp_path / "tuned"))
    ours = EmbeddingGemma(unusual)
    assert (theirs.max_seq_length, theirs.similarity_fn_name) == (16, "manhattan")
    for method in ("encode", "encode_query", "encode_document"):
        expected = getattr(theirs, method)(TEXTS, normalize_embeddings=True)
        assert np.abs(getattr(ours, method)(TEXTS) - expected).max() <= CLOSE


@pytest.mark.filterwarnings("ignore")
def test_what_sentence_transformers_saved_loads_the_same(tiny, tmp_path):
    """Its settings move when it saves: the length and the side to the tokenizer, lower case into it."""
    reference = pytest.importorskip("reference", reason="needs the extra `reference`")
    changes = {BERT: UNUSUAL[BERT], TOKENIZER: UNUSUAL[TOKENIZER]}
    theirs = reference.sentence_transformer(edited(tiny, tmp_path / "m", changes))
    expected = theirs.encode(TEXTS)
    theirs.save_pretrained(str(tmp_path / "saved"))
    ours = EmbeddingGemma(tmp_path / "saved")
    assert ours.max_length == 16
    assert np.abs(ours.encode(TEXTS) - expected).max() <= CLOSE


def test_what_was_set_by_hand_is_set_in_the_copy(tiny, tmp_path):
    model = EmbeddingGemma(tiny, truncate_dim=128, max_length=32)
    model.prompts["mine"] = "mine: "
    model.save_pretrained(tmp_path / "copy")
    copy = EmbeddingGemma(tmp_path / "copy")
    assert copy.max_length == 32 and copy.encode("a").shape == (128,)
    assert copy.prompts == model.prompts
    EmbeddingGemma(tmp_path / "copy", truncate_dim=768).save_pretrained(tmp_path / "whole")
    assert EmbeddingGemma(tmp_path / "whole").encode("a").shape == (768,)


def test_what_nobody_set_is_copied_byte_for_byte(tiny, tmp_path):
    EmbeddingGemma(tiny).save_pretrained(tmp_path / "copy")
    for path in tiny.rglob("*"):
        if path.is_file():
            copy = tmp_path / "copy" / path.relative_to(tiny)
            assert copy.read_bytes() == path.read_bytes(), path.name


def test_written_settings_leave_what_else_a_file_says(tiny, tmp_path):
    folder = edited(tiny, tmp_path / "m", {MODEL: {"__version__": {"pytorch": "2.0"}}})
    settings = replace(read_settings(folder, 2048), max_length=64, truncation_side="left")
    write_settings(folder, settings, 2048)
    assert read_settings(folder, 2048) == settings
    assert json.loads((folder / MODEL).read_text())["__version__"] == {"pytorch": "2.0"}
    assert json.loads((folder / TOKENIZER).read_text())["bos_token"] == "<bos>"


@pytest.mark.parametrize("value", [2, 4096, 1.5, "a", [64], np.zeros(3)])
def test_a_length_by_hand_is_checked(value, tiny):
    with pytest.raises((EmbeddingGemmaError, TypeError), match="expected max_length "):
        EmbeddingGemma(tiny, max_length=value)


@pytest.mark.parametrize("value", [0, -1, 256.0, "256", [256]])
def test_a_dimension_by_hand_is_checked(value, tiny):
    with pytest.raises(EmbeddingGemmaError, match="expected truncate_dim 768, 512, 256, 128, got"):
        EmbeddingGemma(tiny, truncate_dim=value)


def test_distances_between_near_vectors_keep_their_digits():
    a = np.zeros((1, 768), np.float32)
    a[0, 0] = 1
    b = a.copy()
    b[0, 1] = 1e-4
    assert all_pairs(a, b, "euclidean", [768])[0, 0] == pytest.approx(-1e-4, rel=1e-6)
    assert all_pairs(a, b, "manhattan", [768])[0, 0] == pytest.approx(-1e-4, rel=1e-6)
    assert all_pairs(a, a, "euclidean", [768])[0, 0] == 0
    assert each_pair(a, b, "euclidean", [768])[0] == pytest.approx(-1e-4, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_similarity_of_none_one_and_zero_vectors(name):
    one, none = np.ones(4, np.float32), np.zeros((0, 4), np.float32)
    assert all_pairs(none, np.ones((3, 4)), name, [4]).shape == (0, 3)
    assert all_pairs(one, one, name, [4]).shape == (1, 1)
    assert np.isfinite(
        all_pairs(np.zeros(4), one, name, [4])
    ).all()  # as sentence-transformers: 0, not NaN


def test_the_older_name_of_the_tokenizers_length(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "m")
    (folder / BERT).unlink()
    config = json.loads((folder / TOKENIZER).read_text())
    del config["model_max_length"]
    (folder / TOKENIZER).write_text(json.dumps(config | {"max_len": 20}))
    assert read_settings(folder, 2048).max_length == 20
