"""The tokenizer that a folder means: transformers' ids, whatever files it holds, or one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_embeddinggemma.convert import convert
from mlx_embeddinggemma.convert.gguf_file import _tokenizer_files
from mlx_embeddinggemma.convert.sentencepiece_model import Kind, from_json, model_proto
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError
from mlx_embeddinggemma.tokenizer import (
    FILES,
    JsonTokenizer,
    SentencePieceTokenizer,
    agrees,
    load_tokenizer,
    seal,
)

ROWS = 576  # of tables, for 512 tokens: a multiple of 64 that leaves room for more
TEXTS = [
    "the cat", "a [CASE_ID] 7", "x[CASE_ID]y", "HELLO the", "", "<pad><bos> a", "a <image_soft_token>x",
    "the <mask> cat", "  two  spaces ", "\n\t", "é日🏰\x00\u2581", "[CASE_ID][CASE_ID]", "a CASE b",
]  # fmt: skip
FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of a tokenizer alone: 512 tokens of Gemma's kind."""
    path = tmp_path / "folder"
    path.mkdir()
    checkpoints.write_tokenizer(path, 512)
    checkpoints.write_json(path / "config.json", {"model_type": "gemma3_text"})
    return path


@pytest.fixture
def padded(tmp_path) -> Path:
    """A checkpoint whose vocabulary table has 64 rows more than its tokenizer has tokens."""
    path = checkpoints.write_tiny(
        tmp_path / "padded",
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        _sliding_window_pattern=2,
        dense=(64, 256),
        vocab_size=ROWS,
    )
    checkpoints.write_tokenizer(path, 512)
    return path


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    edit(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")


def reference(folder: Path, texts: list[str]) -> list[list[int]]:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    ids: list[list[int]] = transformers.AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    return ids


# What the files may say


def added(content: str = "[CASE_ID]", **flags: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw["added_tokens"].append({"id": 512, "content": content} | FLAGS | flags)


def model(**settings: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw["model"].update(settings)


def template(*parts: str) -> Callable[[dict[str, Any]], object]:
    single = [
        {"Sequence" if part == "A" else "SpecialToken": {"id": part, "type_id": 0}} for part in parts
    ]
    return lambda raw: raw["post_processor"].update(single=single)


def lower(raw: dict[str, Any]) -> None:
    raw["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Lowercase"}, {"type": "NFKC"}, raw["normalizer"]],
    }


def has(**settings: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(settings)


CUT = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADS = {
    "strategy": {"Fixed": 20},
    "direction": "Left",
    "pad_to_multiple_of": 8,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
CASE = {"content": "[CASE_ID]"} | FLAGS
STRIPS = CASE | {"lstrip": True, "rstrip": True}
JSON = {
    "as it is": has(),
    "a token added": added(),
    "normalized": added(normalized=True),
    "lstrip": added(lstrip=True),
    "rstrip": added(rstrip=True),
    "single_word": added("CASE", single_word=True),
    "with a space": added("a [CASE"),
    "with U+2581": added("\u2581cat", normalized=True),
    "of a space": added(" "),
    "with another id": lambda raw: (added()(raw), raw["added_tokens"][-1].update(id=540)),
    "no bos": template("A", "<eos>"),
    "no eos": template("<bos>", "A"),
    "two eos": template("<bos>", "A", "<eos>", "<eos>"),
    "no post-processor": has(post_processor=None),
    "no pre-tokenizer": has(pre_tokenizer=None),
    "truncation": has(truncation=CUT),
    "padding": has(padding=PADS),
    "dropout of 0": model(dropout=0.0),
}
AS_IT_IS = {
    "lower case and NFKC": lower,
    "no normalizer": has(normalizer=None),
    "words": has(pre_tokenizer={"type": "Whitespace"}),
    "bytes": has(
        pre_tokenizer={
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        }
    ),
    "no byte fallback": model(byte_fallback=False),
    "whole words first": model(ignore_merges=True),
}
CONFIG = {
    "listed": ("tokenizer_config.json", has(added_tokens_decoder={"512": CASE})),
    "listed with flags": ("tokenizer_config.json", has(added_tokens_decoder={"512": STRIPS})),
    "listed, two": (
        "tokenizer_config.json",
        has(added_tokens_decoder={"20": CASE, "5": {"content": "x[", "special": True}}),
    ),
    "add_bos_token": ("tokenizer_config.json", has(add_bos_token=False, add_eos_token=False)),
    "add_prefix_space": ("tokenizer_config.json", has(add_prefix_space=True, do_lower_case=True)),
    "extra": ("tokenizer_config.json", has(extra_special_tokens=["[CASE_ID]"])),
    "extra by name": ("tokenizer_config.json", has(extra_special_tokens={"case": "[CASE_ID]"})),
    "additional": ("tokenizer_config.json", has(additional_special_tokens=["[CASE_ID]"])),
    "a role": ("tokenizer_config.json", has(case_token="[CASE_ID]")),
    "a role with flags": (
        "tokenizer_config.json",
        has(sep_token={"__type": "AddedToken"} | STRIPS),
    ),
    "a role of a piece": ("tokenizer_config.json", has(pad_token="the")),
    "no role": ("tokenizer_config.json", has(mask_token=None)),
    "old map": ("special_tokens_map.json", has(pad_token="[CASE_ID]")),
    "old map with flags": ("special_tokens_map.json", has(boi_token=STRIPS)),
    "old map, more": ("special_tokens_map.json", has(additional_special_tokens=["[CASE_ID]"])),
    "old list": ("added_tokens.json", has(**{"[CASE_ID]": 512})),
    "old list of other ids": ("added_tokens.json", has(**{"[CASE_ID]": 900, "x[": 3})),
}


@pytest.mark.parametrize("kind", ["GemmaTokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("case", JSON)
def test_tokenizer_json_gives_transformers_ids(case, kind, folder):
    change(folder / "tokenizer_config.json", has(tokenizer_class=kind))
    change(folder / "tokenizer.json", JSON[case])
    assert load_tokenizer(folder, ROWS).encode(TEXTS) == reference(folder, TEXTS)


@pytest.mark.parametrize("case", AS_IT_IS)
def test_what_gemmas_class_would_replace_counts_for_the_other_and_is_refused_for_it(case, folder):
    change(folder / "tokenizer.json", AS_IT_IS[case])
    assert load_tokenizer(folder, ROWS).encode(TEXTS) == reference(folder, TEXTS)
    change(folder / "tokenizer_config.json", has(tokenizer_class="GemmaTokenizer"))
    with pytest.raises(EmbeddingGemmaError, match="expected Gemma's own .* PreTrainedTokenizerFast"):
        load_tokenizer(folder, ROWS)


@pytest.mark.parametrize("with_token", [False, True])
@pytest.mark.parametrize("kind", ["GemmaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("case", CONFIG)
def test_the_files_beside_it_count_as_in_transformers(case, kind, with_token, folder):
    name, edit = CONFIG[case]
    change(folder / name, edit)
    change(folder / "tokenizer_config.json", has(tokenizer_class=kind))
    if with_token:
        change(folder / "tokenizer.json", added())
    if case == "listed, two" and kind == "GemmaTokenizer" and with_token:
        with pytest.raises(EmbeddingGemmaError, match=r"\[CASE_ID\]', which .* numbers otherwise"):
            load_tokenizer(folder, ROWS)
        return
    assert load_tokenizer(folder, ROWS).encode(TEXTS) == reference(folder, TEXTS)


REFUSED = {
    "another class": ("tokenizer_config.json", has(tokenizer_class="LlamaTokenizer"), "LlamaTokenizer"),
    "a class of 7": ("tokenizer_config.json", has(tokenizer_class=7), "expected tokenizer_class .* 7"),
    "split_special_tokens": ("tokenizer_config.json", has(split_special_tokens=True), "split_special"),
    "a list of tokens": ("tokenizer_config.json", has(added_tokens_decoder=["a"]), "with their ids"),
    "an id of text": ("tokenizer_config.json", has(added_tokens_decoder={"x": CASE}), "with their ids"),
    "an id of 400 digits": (
        "tokenizer_config.json",
        has(added_tokens_decoder={"9" * 400: CASE}),
        "with their ids",
    ),
    "a token of 7": ("tokenizer_config.json", has(added_tokens_decoder={"7": 7}), "a token's text"),
    "a token without text": ("tokenizer_config.json", has(added_tokens_decoder={"7": FLAGS}), "text"),
    "a flag of text": (
        "tokenizer_config.json",
        has(added_tokens_decoder={"7": CASE | {"lstrip": "yes"}}),
        "a token's text",
    ),
    "a role of 7": ("tokenizer_config.json", has(pad_token=7), "a token's text"),
    "a surrogate": ("tokenizer_config.json", has(pad_token="\ud800"), "a token's text"),
    "extra of text": ("tokenizer_config.json", has(extra_special_tokens="abc"), "a list of special"),
    "old ids of text": ("added_tokens.json", has(a="7"), None),
    "old ids with a point": ("added_tokens.json", has(a=7.0), "with their ids"),
    "dropout": ("tokenizer.json", model(dropout=0.5), "dropout of 0.5"),
    "the text twice": ("tokenizer.json", template("A", "<eos>", "A"), "before and behind the text"),
    "no text": ("tokenizer.json", template("<eos>"), "before and behind the text"),
    "panic when loading": (
        "tokenizer.json",
        has(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "is not a tokenizer: Precompiled",
    ),
    "another panic": (
        "tokenizer.json",
        model(continuing_subword_prefix="#" * 10),
        "is not a tokenizer",
    ),
    "panic at the first text": (
        "tokenizer.json",
        lambda raw: raw["post_processor"].update(special_tokens={}),
        "is not a tokenizer",
    ),
    "eos without a row": (
        "tokenizer.json",
        lambda raw: raw["post_processor"]["special_tokens"]["<eos>"].update(ids=[9999]),
        "tokens of the vocabulary .* 9999",
    ),
    "no merges": ("tokenizer.json", lambda raw: raw["model"].pop("merges"), "is not a tokenizer"),
    "a broken expression": (
        "tokenizer.json",
        has(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": "x"}),
        "is not a tokenizer",
    ),
    "too few rows": (
        "tokenizer.json",
        lambda raw: raw["model"]["vocab"].update({f"<{i}>": 512 + i for i in range(65)}),
        "has 577 tokens, the vocabulary table 576 rows: resize",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(case, folder):
    name, edit, says = REFUSED[case]
    change(folder / name, edit)
    if says is None:
        load_tokenizer(folder, ROWS)
        return
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        load_tokenizer(folder, ROWS)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_list_that_lacks_a_token_is_refused_for_the_class_that_would_take_it_alone(folder):
    change(folder / "tokenizer.json", added())
    change(folder / "tokenizer_config.json", has(added_tokens_decoder={}))
    assert load_tokenizer(folder, ROWS).encode(TEXTS) == reference(folder, TEXTS)
    change(folder / "tokenizer_config.json", has(tokenizer_class="GemmaTokenizer"))
    with pytest.raises(EmbeddingGemmaError, match=r"adds the token '\[CASE_ID\]', which .* lacks"):
        load_tokenizer(folder, ROWS)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:6852f8d5\nsize 33385008\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (POINTER, "is a Git LFS pointer")])
@pytest.mark.parametrize("alone", [False, True])
def test_a_file_without_its_content_says_so(name, content, says, alone, folder):
    if name == "tokenizer.json" and not alone:
        (folder / "tokenizer.model").write_bytes(from_json(folder / name) or b"")
    if name == "tokenizer.model" and alone:
        (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(EmbeddingGemmaError, match=f"{name} {says}"):
        load_tokenizer(folder, ROWS)


# tokenizer.model: quick, and read only where it is shown to agree


@pytest.fixture
def sealed(folder) -> Path:
    (folder / "tokenizer.model").write_bytes(from_json(folder / "tokenizer.json") or b"")
    assert isinstance(load_tokenizer(folder, ROWS), SentencePieceTokenizer)
    return folder


@pytest.mark.parametrize("name", [*FILES, "tokenizer.model"])
def test_a_change_of_any_file_breaks_the_seal(name, sealed):
    path = sealed / name
    content = bytearray(path.read_bytes() if path.exists() else b"{}")
    if name == "tokenizer.model":
        content[100] ^= 1
    path.write_bytes(bytes(content) + b"\n" * (name != "tokenizer.model"))
    assert not agrees(sealed)
    assert isinstance(load_tokenizer(sealed, ROWS), JsonTokenizer)


def test_a_token_added_in_transformers_counts_beside_a_stale_model(sealed):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(sealed)
    tokenizer.add_tokens(["[CASE_ID]"])
    tokenizer.save_pretrained(sealed)
    assert (sealed / "tokenizer.model").exists()
    ids = load_tokenizer(sealed, ROWS).encode(TEXTS)
    assert ids[1] == [2, 325, 260, 512, 260, 283, 1]
    assert ids == reference(sealed, TEXTS)


def test_a_model_that_nobody_vouches_for_is_not_read(sealed):
    path = sealed / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:-35])
    assert isinstance(load_tokenizer(sealed, ROWS), JsonTokenizer)
    path.write_bytes(b"nonsense")
    assert isinstance(load_tokenizer(sealed, ROWS), JsonTokenizer)


def test_googles_own_pair_is_known(shared):
    from mlx_embeddinggemma.tokenizer import GOOGLE

    pinned = json.loads((shared / "model-configs" / "pinned_sha256.json").read_text())["sha256"]
    assert {name: pinned[name] for name in GOOGLE} == GOOGLE


@pytest.mark.parametrize("case", [*JSON, *AS_IT_IS, "unlisted bos", "a product of bytes", "a gap"])
def test_a_derived_model_gives_the_same_ids_or_is_none(case, folder):
    more = {
        "unlisted bos": lambda raw: raw["added_tokens"].pop(2),
        "a product of bytes": lambda raw: (
            raw["model"]["vocab"].update({"x4": 512, "0x4": 513, "<0x4": 514, "1>": 515}),
            raw["model"]["merges"].insert(0, ["<0x4", "1>"]),
            raw["model"]["merges"].extend([["x", "4"], ["0", "x4"], ["<", "0x4"], ["1", ">"]]),
        ),
        "a gap": lambda raw: raw["model"]["vocab"].update(gap=520),
    }
    change(folder / "tokenizer.json", (JSON | AS_IT_IS | more)[case])
    model = from_json(folder / "tokenizer.json")
    kept = {"as it is", "a token added", "no pre-tokenizer", "truncation", "padding", "dropout of 0"}
    assert (model is not None) == (case in kept)
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
        quick = load_tokenizer(folder, ROWS)
        assert isinstance(quick, SentencePieceTokenizer)
        assert quick.encode(TEXTS) == JsonTokenizer(folder, ROWS).encode(TEXTS)


@pytest.mark.parametrize("index", range(4))
def test_a_derived_model_needs_all_its_special_tokens_found_in_texts(index, folder):
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    checkpoints.write_json(folder / "tokenizer_config.json", config)
    assert from_json(folder / "tokenizer.json") is not None
    change(folder / "tokenizer.json", lambda raw: raw["added_tokens"].pop(index))
    assert from_json(folder / "tokenizer.json") is None
    assert load_tokenizer(folder, ROWS).encode(TEXTS) == reference(folder, TEXTS)


@pytest.mark.parametrize("case", CONFIG)
def test_a_derived_model_takes_the_files_beside_into_account(case, folder):
    name, edit = CONFIG[case]
    change(folder / name, edit)
    change(folder / "tokenizer.json", added())
    if model := from_json(folder / "tokenizer.json"):
        (folder / "tokenizer.model").write_bytes(model)
        assert agrees(folder)
        assert load_tokenizer(folder, ROWS).encode(TEXTS) == reference(folder, TEXTS)


@pytest.fixture(scope="session")
def demos(demo):
    """The bundled checkpoint's two readers."""
    quick = load_tokenizer(demo, 16_384)
    assert isinstance(quick, SentencePieceTokenizer)
    return quick, JsonTokenizer(demo, 16_384)


PIECES = st.sampled_from([
    "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<image_soft_token>", "<start_of_turn>", "[CASE_ID]",
    "\u2581", "\u2581\u2581", "\u2581" * 9, " ", "  ", "\n", "\n\n", "\t\t\t", "the", "a", "🏰",
    "\ud83d",
    "\ud800", "\udfff", "\x00", "é", "<0x41>", "日本", "\ufeff",
    "\u200d",
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join))
def test_the_demos_readers_agree_on_texts_with_surrogates(demos, text):
    quick, slow = demos
    assert quick.encode([text]) == slow.encode([text])


@pytest.mark.parametrize("text", ["the cat ", "\x00", " ", "\ud800x", "<bos>"])
def test_a_text_of_a_million_characters(text, demos):
    long = text * (1_000_000 // len(text))
    ids = [reader.encode([long]) for reader in demos]
    assert ids[0] == ids[1] and len(ids[0][0]) > 1_000_000 // 64


# tokenizer.model alone


def write_alone(folder: Path, pieces: list[str], **changes: Any) -> None:
    from sentencepiece import sentencepiece_model_pb2

    kinds = [Kind.CONTROL] * 3 + [Kind.UNKNOWN] + [Kind.NORMAL] * (len(pieces) - 4)
    proto = sentencepiece_model_pb2.ModelProto.FromString(
        model_proto(pieces, [-float(i) for i in range(len(pieces))], kinds)
    )
    for key, value in changes.items():
        part = proto.trainer_spec if key.endswith("_piece") else proto.normalizer_spec
        setattr(part, key, value)
    proto.trainer_spec.byte_fallback = False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bos_piece": "<s>"}, "has no bos piece"),
        ({"eos_piece": "</s>"}, "has no eos piece"),
        ({"add_dummy_prefix": True}, "takes a text as it is"),
        ({"remove_extra_whitespaces": True}, "takes a text as it is"),
        ({"pad_piece": "[PAD]", "unk_piece": "[UNK]"}, None),
        ({}, None),
    ],
)
def test_a_model_alone_needs_bos_and_eos_and_takes_texts_as_they_are(changes, says, tmp_path):
    pytest.importorskip("google.protobuf")
    write_alone(tmp_path, ["<pad>", "<eos>", "<bos>", "<unk>", "a", "\u2581", "b"], **changes)
    if says is None:
        assert load_tokenizer(tmp_path, 7).encode(["a b"]) == [[2, 4, 5, 6, 1]]
        return
    with pytest.raises(EmbeddingGemmaError, match=says):
        load_tokenizer(tmp_path, 7)


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_model_alone_leaves_out_what_its_config_says(name, sealed):
    (sealed / "tokenizer.json").unlink()
    both = load_tokenizer(sealed, ROWS).encode(["the"])
    assert both == [[2, 356, 1]]
    change(sealed / "tokenizer_config.json", has(**{f"add_{name}_token": False}))
    assert load_tokenizer(sealed, ROWS).encode(["the"]) == [
        both[0][1:] if name == "bos" else both[0][:-1]
    ]


@pytest.mark.parametrize("case", ["listed", "extra", "a role", "old map", "old list"])
def test_a_model_alone_without_a_token_that_is_named_beside_it_is_refused(case, sealed):
    (sealed / "tokenizer.json").unlink()
    name, edit = CONFIG[case]
    change(sealed / name, edit)
    with pytest.raises(EmbeddingGemmaError, match=r"lacks the token '\[CASE_ID\]'"):
        load_tokenizer(sealed, ROWS)


def gguf_metadata(folder: Path, **changes: Any) -> dict[str, Any]:
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = [3, 3, 3, 2] + 256 * [6] + 252 * [1]
    scores = [-float(i) for i in range(512)]
    values = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds} | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
def test_a_gguf_says_whether_bos_and_eos_belong_to_a_text(bos, eos, folder, tmp_path):
    said = {k: v for k, v in (("add_bos_token", bos), ("add_eos_token", eos)) if v is not None}
    files = _tokenizer_files(tmp_path / "a.gguf", gguf_metadata(folder, **said), None)
    (tmp_path / "out").mkdir()
    for name, content in files.items():
        (tmp_path / "out" / name).write_bytes(content)
    ids = load_tokenizer(tmp_path / "out", ROWS).encode(["the cat"])[0]
    assert ids == [2] * (bos is not False) + [356, 260, 327, 325, 344] + [1] * (eos is not False)
    (tmp_path / "out" / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert [ids] == reference(tmp_path / "out", ["the cat"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("add_space_prefix", True), ("bos_token_id", 1), ("eos_token_id", 106), ("padding_token_id", 3)],
)
def test_a_gguf_of_another_kind_is_refused(key, value, folder, tmp_path):
    with pytest.raises(EmbeddingGemmaError, match=f"expected tokenizer.ggml.{key} .* --tokenizer"):
        _tokenizer_files(tmp_path / "a.gguf", gguf_metadata(folder, **{key: value}), None)


# Rows and ids


def test_a_token_without_a_row_is_refused_when_a_text_has_it(folder):
    change(folder / "tokenizer.json", lambda raw: raw["model"]["vocab"].update(q=4_000_000_000))
    tokenizer = load_tokenizer(folder, 512)
    assert tokenizer.encode(["the"]) == [[2, 356, 1]]
    with pytest.raises(EmbeddingGemmaError, match="token 'q' has id 4,000,000,000, .* 512 rows"):
        tokenizer.encode(["the q"])


@pytest.mark.parametrize("quick", [False, True])
def test_the_image_token_is_unknown_without_a_row_and_itself_with_one(quick, folder):
    change(folder / "tokenizer.json", added("<image_soft_token>"))
    if quick:
        (folder / "tokenizer.model").write_bytes(from_json(folder / "tokenizer.json") or b"")
    text = "a<image_soft_token>"
    assert load_tokenizer(folder, 512).encode([text]) == [[2, 325, 3, 1]]
    assert load_tokenizer(folder, 513).encode([text]) == [[2, 325, 512, 1]] == reference(folder, [text])
    change(folder / "tokenizer.json", added("[CASE_ID]", id=513))
    with pytest.raises(EmbeddingGemmaError, match="has 513 tokens, the vocabulary table 512 rows"):
        load_tokenizer(folder, 512)


def test_a_padded_table_gives_sentence_transformers_vectors(padded):
    st = pytest.importorskip("sentence_transformers")
    change(padded / "tokenizer.json", added("<image_soft_token>"))
    expected = st.SentenceTransformer(str(padded), device="cpu").encode(TEXTS)
    assert_near(EmbeddingGemma(padded).encode(TEXTS), expected)


@pytest.mark.parametrize("parts", [("A", "<eos>"), ("<bos>", "A"), ("<bos>", "A", "<eos>", "<eos>")])
def test_a_long_text_is_cut_before_what_the_tokenizer_adds(parts, padded):
    st = pytest.importorskip("sentence_transformers")
    change(padded / "tokenizer.json", template(*parts))
    model = st.SentenceTransformer(str(padded), device="cpu")
    model.max_seq_length = 8
    text = "a the cat in the rain, at the end"
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        ours = EmbeddingGemma(padded, max_length=8).encode([text])
    assert_near(ours, model.encode([text]))


def test_a_padded_checkpoint_goes_through_all_doors(padded, tmp_path):
    from mlx_embeddinggemma.finetune import finetune

    expected = EmbeddingGemma(padded).encode(TEXTS)
    EmbeddingGemma(padded).save_pretrained(tmp_path / "saved")
    convert(padded, tmp_path / "converted", recipe="fp32")
    assert agrees(tmp_path / "converted")
    rows = [{"anchor": f"{a} {b}", "positive": f"the {b} of {a}"} for a in "xyz" for b in "abc"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finetune(
        tmp_path / "converted", pairs, tmp_path / "tuned", steps=1, batch_size=4, learning_rate=1e-9
    )
    for name in ("saved", "converted", "tuned"):
        np.testing.assert_allclose(EmbeddingGemma(tmp_path / name).encode(TEXTS), expected, atol=1e-5)
    assert agrees(tmp_path / "tuned")


def test_convert_replaces_a_stale_model_and_drops_one_that_cannot_be_shown_right(padded, tmp_path):
    stale = from_json(padded / "tokenizer.json") or b""
    (padded / "tokenizer.model").write_bytes(stale)
    change(padded / "tokenizer.json", added())
    convert(padded, tmp_path / "renewed", recipe="fp32")
    assert agrees(tmp_path / "renewed")
    ids = EmbeddingGemma(tmp_path / "renewed").tokenize(TEXTS)
    assert ids == EmbeddingGemma(padded).tokenize(TEXTS) == reference(padded, TEXTS)
    change(padded / "tokenizer.json", template("<bos>", "A"))
    convert(padded, tmp_path / "dropped", recipe="fp32")
    assert not (tmp_path / "dropped" / "tokenizer.model").exists()
    assert EmbeddingGemma(tmp_path / "dropped").tokenize(TEXTS) == reference(padded, TEXTS)


def test_convert_keeps_a_seal_that_holds(padded, tmp_path):
    content = from_json(padded / "tokenizer.json") or b""
    (padded / "tokenizer.model").write_bytes(content)
    convert(padded, tmp_path / "out", recipe="fp32")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == content == seal(padded, content[:-35])


def test_lower_case_leaves_added_tokens_alone(sealed):
    change(sealed / "tokenizer.json", added())
    tokenizer = load_tokenizer(sealed, ROWS, lower_case=True)
    assert tokenizer.encode(["THE [CASE_ID]"]) == load_tokenizer(sealed, ROWS).encode(["the [CASE_ID]"])
    (sealed / "tokenizer.json").unlink()
    with pytest.raises(
        EmbeddingGemmaError, match="lacks tokenizer.json, which its do_lower_case needs"
    ):
        load_tokenizer(sealed, ROWS, lower_case=True)


def test_a_folder_without_either_says_so(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(EmbeddingGemmaError, match="neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(folder, ROWS)
