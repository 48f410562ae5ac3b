"""Token ids equal the real tokenizer's, whichever reader of the vocabulary is used."""

import json
import lzma
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_embeddinggemma.convert import sentencepiece_model

from mlx_embeddinggemma.tokenizer import JsonTokenizer, SentencePieceTokenizer, clean

VOCAB = 262_144
BOS, EOS = 2, 1


@pytest.fixture(scope="session")
def real(shared, tmp_path_factory):
    """The real vocabulary, read by tokenizers and by sentencepiece."""
    folder = tmp_path_factory.mktemp("tokenizer")
    path = folder / "tokenizer.json"
    path.write_bytes(lzma.decompress((shared / "tokenizer" / "tokenizer.json.xz").read_bytes()))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model.from_json(path))
    return JsonTokenizer(folder, VOCAB), SentencePieceTokenizer(folder, VOCAB)


@pytest.fixture(scope="session", params=["tokenizers", "sentencepiece"])
def reader(real, request):
    return real[request.param == "sentencepiece"]


@pytest.mark.parametrize("name", ["small", "mixed"])
def test_golden_ids_of_many_scripts(reader, shared, name):
    folder = shared / "tokenizer-goldens"
    lines = (folder / f"{name}_input.txt").read_text(encoding="utf-8").split("\n")
    texts = [line.replace("\\n", "\n").replace("\\s", " ").replace("\\x", "") for line in lines if line]
    golden = (folder / f"{name}_tokens_gemma3.txt").read_text().strip().split("\n")
    expected = [[BOS, *map(int, line.split(",")), EOS] for line in golden]
    assert len(texts) == len(expected)
    assert reader.encode(texts) == expected


def test_golden_ids_with_bos_and_eos(reader, shared):
    golden = json.loads((shared / "tokenizer-goldens" / "goldens-tokens.json").read_text())
    key = next(key for key in golden if key != "strings")
    assert reader.encode(golden["strings"]) == golden[key]


def test_known_ids(reader):
    assert reader.encode(["", "Hello, world!"]) == [
        [2, 1],
        [2, 9259, 236764, 1902, 236888, 1],
    ]


def test_ids_stay_inside_the_vocabulary_table(reader):
    assert reader.vocab_size == VOCAB
    assert reader.encode(["<image_soft_token>"]) == [[2, 3, 1]]
    assert max(reader.encode(["a <image_soft_token> b"])[0]) < VOCAB


SPECIAL = [
    "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<image_soft_token>", "<start_of_image>",
    "<start_of_turn>", "<unused7>", "<table>", "</h1>", "[multimodal]", "\n\n\n", "\t\t", "   ",
    "▁▁", "▁", " ", "<0x41>", "a", "Wort", "字", "é", "🎉", "\x00", "\u200b", "\ufeff", "1234",
    "\r\n", "\xa0", "\u3000",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(SPECIAL), max_size=8).map("".join))
def test_readers_agree_on_special_tokens_in_the_text(real, text):
    assert real[0].encode([text]) == real[1].encode([text])


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=60))
def test_readers_agree_on_any_text(real, text):
    assert real[0].encode([text]) == real[1].encode([text])


def test_readers_agree_on_real_text(real, shared):
    """4,000 lines of the training corpus, every language of it."""
    import tarfile

    lines = []
    with tarfile.open(shared / "train-corpus.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".jsonl"):
                file = archive.extractfile(member)
                rows = (json.loads(line) for line in islice(file, 0, 40_000, 100))
                lines += [json.dumps(row, ensure_ascii=False)[:1500] for row in rows]
    assert len(lines) > 1000
    assert real[0].encode(lines) == real[1].encode(lines)


def test_clean_repairs_surrogates():
    assert clean("a\ud800b") == "a\ufffdb"
    assert clean("\ud83d\ude00") == "😀"
    assert clean("日本") == "日本"


def test_the_demo_readers_agree(demo):
    readers = (JsonTokenizer(demo, 16_384), SentencePieceTokenizer(demo, 16_384))
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(SPECIAL, 6)) for _ in range(500)]
    assert readers[0].encode(texts) == readers[1].encode(texts)
    assert readers[0].vocab_size == readers[1].vocab_size == 16_384
