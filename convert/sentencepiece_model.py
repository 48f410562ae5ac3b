"""tokenizer.json to the `tokenizer.model` that sentencepiece reads: 45 MB instead of 290, 0.05 s.

A ModelProto (sentencepiece_model.proto of google/sentencepiece), encoded here: five message fields
do not earn a protobuf dependency.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.tokenizer import OUTSIDE_TABLE


class Kind(IntEnum):
    """sentencepiece's types of pieces; GGUF files use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    BYTE = 6


def from_json(path: Path) -> bytes | None:
    """The model of a tokenizer.json, or None where sentencepiece could not give the same ids.

    sentencepiece joins two neighbours whenever the result is a piece, lowest id first. A
    tokenizer.json says the same only if its merges are all the ways to split its pieces, in the
    order of the ids; the added tokens (found in the text beforehand by both) are free of the order.
    """
    try:
        raw = json.loads(path.read_bytes())
        model, added = raw["model"], {a["content"]: a["id"] for a in raw["added_tokens"]}
        if not _plain_bpe(raw) or not _merges_follow_ids(model, added):
            return None
        vocab = {**model["vocab"], **added}
        vocab.pop(OUTSIDE_TABLE, None)
        pieces = sorted(vocab, key=vocab.__getitem__)
        if [vocab[piece] for piece in pieces] != list(range(len(pieces))):
            return None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EmbeddingGemmaError(f"{path} is not a tokenizer: {error!r}") from None
    kinds = [_kind(i, piece, piece in added) for i, piece in enumerate(pieces)]
    return model_proto(pieces, [-float(i) for i in range(len(pieces))], kinds)


def model_proto(pieces: Sequence[str], scores: Iterable[float], kinds: Iterable[int]) -> bytes:
    """A BPE model with byte fallback that takes the text as it is.

    Args:
        pieces: by id.
        scores: of each; the highest is joined first.
        kinds: of each, see `Kind`.
    """
    entries = bytearray()
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        text = piece.encode()
        content = b"\n%b%b\x15%b\x18%c" % (_varint(len(text)), text, _float(score), kind)
        entries += _field(1, content)
    # model_type BPE, vocab_size, byte_fallback, then the ids and the texts of unk, bos, eos, pad.
    trainer = _number(3, 2) + _number(4, len(pieces)) + _number(35, 1)
    for i, special in enumerate((3, 2, 1, 0)):
        trainer += _number(40 + i, special) + _field(45 + i, pieces[special].encode())
    # add_dummy_prefix, remove_extra_whitespaces off; escape_whitespaces on.
    normalizer = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    return bytes(entries) + _field(2, trainer) + _field(3, normalizer)


def _plain_bpe(raw: Mapping[str, Any]) -> bool:
    """Whether the file holds Gemma's kind of tokenizer: spaces to U+2581, nothing else changed."""
    model, normalizer = raw["model"], raw.get("normalizer") or {}
    return (
        model.get("type") == "BPE"
        and bool(model.get("byte_fallback"))
        and normalizer == {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        and not any(a["lstrip"] or a["rstrip"] or a["single_word"] for a in raw["added_tokens"])
    )


def _merges_follow_ids(model: Mapping[str, Any], added: Mapping[str, int]) -> bool:
    vocab = model["vocab"]
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    products = [vocab[left + right] for left, right in merges if left + right not in added]
    splits = [
        i for piece in vocab for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab
    ]
    return len(splits) == len(merges) and all(a <= b for a, b in pairwise(products))


def _kind(i: int, piece: str, added: bool) -> Kind:
    if i < 3:
        return Kind.CONTROL
    if i == 3:
        return Kind.UNKNOWN
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return Kind.BYTE
    return Kind.USER_DEFINED if added else Kind.NORMAL


def _varint(n: int) -> bytes:
    if n <= 0x7F:
        return bytes((n,))
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


_float = struct.Struct("<f").pack


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)
