"""tokenizer.json to the `tokenizer.model` that sentencepiece reads: 45 MB instead of 290, 0.05 s.

A ModelProto (sentencepiece_model.proto of google/sentencepiece), encoded here: five message fields
do not earn a protobuf dependency.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.presence import check_present
from mlx_embeddinggemma.tokenizer import seal
from mlx_embeddinggemma.tokenizer_json import (
    BPE,
    FLAGS,
    NORMALIZER,
    PRE_TOKENIZER,
    Beside,
    as_tuple,
    read_beside,
)

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]  # their ids in every Gemma
BYTE = re.compile("<0x[0-9A-F]{2}>")


class Kind(IntEnum):
    """sentencepiece's types of pieces; GGUF files use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    BYTE = 6


def from_json(path: Path) -> bytes | None:
    """The model of a tokenizer.json, or None where sentencepiece is not sure to give the same ids.

    sentencepiece joins two neighbours whenever the result is a piece, lowest id first. A
    tokenizer.json says the same only if its merges are all the ways to split its pieces, in the
    order of the ids; the added tokens (found in the text beforehand by both) are free of the order.

    Args:
        path: of the file, with those beside it that may add to it.

    Returns:
        The file's content, sealed (see `mlx_embeddinggemma.tokenizer`).
    """
    beside = read_beside(path.parent)
    check_present(path)
    try:
        raw = json.loads(path.read_bytes())
        model, tokens = raw["model"], raw.get("added_tokens") or []
        added = {token["content"]: token for token in tokens}
        vocab = model["vocab"] | {piece: a["id"] for piece, a in added.items()}
        pieces = sorted(vocab, key=vocab.__getitem__)
        same = (
            len(added) == len(tokens)
            and [vocab[piece] for piece in pieces] == list(range(len(pieces)))
            and pieces[:4] == SPECIAL
            and _plain_bpe(raw)
            and _plainly_added(pieces, added, beside)
            and _merges_follow_ids(model, added)
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EmbeddingGemmaError(f"{path} is not a tokenizer: {repr(error)[:80]}") from None
    if not same:
        return None
    kinds = [_kind(i, piece, piece in added) for i, piece in enumerate(pieces)]
    return seal(path.parent, model_proto(pieces, [-float(i) for i in range(len(pieces))], kinds))


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
    """Whether the file holds Gemma's kind of tokenizer: spaces to U+2581, bos and eos around a text."""
    model, template = raw["model"], raw.get("post_processor") or {}
    ids = {key: value["ids"] for key, value in template.get("special_tokens", {}).items()}
    single = [next(iter(part.values()))["id"] for part in template.get("single", [])]
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and all(model.get(key) == value for key, value in BPE.items())
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        and raw.get("normalizer") == NORMALIZER
        and raw.get("pre_tokenizer") in (PRE_TOKENIZER, None)
        and single == ["<bos>", "A", "<eos>"]
        and ids == {"<bos>": [2], "<eos>": [1]}
    )


def _plainly_added(pieces: Sequence[str], added: Mapping[str, Any], beside: Beside) -> bool:
    """Whether added tokens are found as sentencepiece finds its own: literally, wherever they stand.

    A space becomes U+2581 after the added tokens are found and before others are merged: only of runs
    of U+2581 is sentencepiece's reader made to tell the one from the other.
    """
    listed = {token.content: as_tuple(token) for token in (*beside.added.values(), *beside.named)}
    literal = {content: (content, False, False, False, False) for content in added}
    runs = {piece for piece in pieces if set(piece) == {"▁"} and len(piece) > 1}
    return (
        all(not any(a.get(flag) for flag in FLAGS[:4]) for a in added.values())
        and all(content and " " not in content for content in added)
        and {content for content in added if "▁" in content}
        == runs
        == {"▁" * n for n in range(2, len(runs) + 2)}
        and added.keys() >= {*SPECIAL, *listed}
        and all(literal[content] == token for content, token in listed.items())
        and not (beside.listed and beside.gemma and added.keys() - listed.keys())
    )


def _merges_follow_ids(model: Mapping[str, Any], added: Mapping[str, Any]) -> bool:
    """Whether neighbours are joined in sentencepiece's order, runs of spaces before all else.

    Merges that give an added token are of no account, but for those runs: it is gone from the text.
    """
    vocab = model["vocab"]
    free = {piece for piece in added if "▁" not in piece}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    merges = [(left, right) for left, right in merges if left + right not in free]
    splits = sum(
        piece[:i] in vocab and piece[i:] in vocab
        for piece in vocab
        if piece not in free
        for i in range(1, len(piece))
    )
    products = [left + right for left, right in merges if left + right not in added]
    return (
        len(merges) == len(set(merges)) == splits
        and all(vocab[a] <= vocab[b] for a, b in pairwise(products))
        and not any(BYTE.fullmatch(product) for product in products)
        and _runs_first(merges, added)
    )


def _runs_first(merges: Sequence[tuple[str, ...]], added: Mapping[str, Any]) -> bool:
    """Whether a run of spaces grows from its left, as in sentencepiece, before a word has any of it."""
    if "▁▁" not in added:
        return True
    begun = merges.index(("▁", "▁"))
    grown = [merges.index((run, "▁")) for run in added if set(run) == {"▁"} and run + "▁" in added]
    word = next((i for i, m in enumerate(merges) if "▁" in "".join(m) not in added), len(merges))
    return max(grown, default=0) <= begun < word


def _kind(i: int, piece: str, added: bool) -> Kind:
    if i < 3:
        return Kind.CONTROL
    if i == 3:
        return Kind.UNKNOWN
    if BYTE.fullmatch(piece):
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
