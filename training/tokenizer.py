"""A small tokenizer of Gemma's kind: BPE with byte fallback, the same special ids and rules."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece as spm
from mlx_embeddinggemma.convert.sentencepiece_model import from_json

CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>"]
OUTSIDE_TABLE = "<image_soft_token>"
SPECIAL = {*CONTROLS, OUTSIDE_TABLE}
USER_DEFINED = [
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    *("\n" * n for n in range(1, 9)),
    *("\u2581" * n for n in range(2, 9)),
    *("\t" * n for n in range(1, 5)),
]


def train(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Writes tokenizer.json, and the tokenizer.model that is shown to agree with it."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=USER_DEFINED,
        minloglevel=2,
    )
    pieces = spm.SentencePieceProcessor(model_proto=model.getvalue())
    write_tokenizer_json([pieces.id_to_piece(i) for i in range(vocab_size)], folder)
    (folder / "tokenizer.model").write_bytes(from_json(folder / "tokenizer.json") or b"")


def write_tokenizer_json(pieces: list[str], folder: Path) -> None:
    # Gemma's file ends in a token that the vocabulary table has no row for; so does this one.
    ids = {piece: i for i, piece in enumerate([*pieces, OUTSIDE_TABLE])}
    added = [*CONTROLS, *USER_DEFINED, OUTSIDE_TABLE]
    # Runs of spaces come before all other merges, the longest first, as in Gemma: sentencepiece
    # takes them whole, since they are user-defined.
    runs = ["\u2581" * n for n in range(8, 1, -1)]
    merges = [(run[:i], run[i:]) for run in runs for i in range(len(run) - 1, 0, -1)]
    for piece in pieces:
        if piece in added or (piece.startswith("<0x") and len(piece) == 6):
            continue
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in splits if a in ids and b in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))

    def special(content: str) -> dict[str, Any]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"id": ids[content], "content": content, **flags, "special": content in SPECIAL}

    bos, eos = (
        {"SpecialToken": {"id": "<bos>", "type_id": 0}},
        {"SpecialToken": {"id": "<eos>", "type_id": 0}},
    )
    template = [bos, {"Sequence": {"id": "A", "type_id": 0}}, eos]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(map(special, added), key=lambda token: token["id"]),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, bos, {"Sequence": {"id": "B", "type_id": 1}}, eos],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in ("<bos>", "<eos>")
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: ids[piece] for piece in pieces},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
    settings = {
        **names,
        "tokenizer_class": "GemmaTokenizer",
        "model_max_length": 2048,
        "padding_side": "right",
        "add_bos_token": True,
        "add_eos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
