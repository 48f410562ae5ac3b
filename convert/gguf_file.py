"""GGUF files of architecture gemma-embedding as sources.

A reader of our own, 60 lines: the `gguf` package believes a file's counts and lengths, and maps it
whole. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import layout
from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.head import Dense
from mlx_embeddinggemma.tensors import read_flat

from .formats import grid
from .recipes import FIXED
from .sentencepiece_model import model_proto
from .sources import COPIED, Matrix, Source, open_folder

ARCHITECTURE = "gemma-embedding"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Entries of two dozen bytes become objects of hundreds: what no EmbeddingGemma needs is not read.
MOST_ENTRIES, MOST_ITEMS = 2**16, 2**20
# Name, weights a block, bytes a block.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file, rows first; `minus` is 1 for norms, which GGUF stores as 1 + w."""

    path: Path
    kind: int
    shape: tuple[int, ...]
    offset: int
    minus: int = 0

    @property
    def nbytes(self) -> int:
        """In the file."""
        _, weights, size = TYPES[self.kind]
        return math.prod(self.shape) // weights * size

    @property
    def settings(self) -> dict[str, Any] | None:
        """Ggml's grids are packed already, in MLX's terms."""
        name = TYPES[self.kind][0].lower()
        return FIXED[name].settings if name in FIXED else None

    def rows(self, start: int, stop: int) -> mx.array:
        """See `Matrix`."""
        if self.settings:
            packed = self.packed_rows(start, stop)
            return mx.dequantize(packed["weight"], packed["scales"], packed["biases"], **self.settings)
        raw = self._read(start, stop)
        match TYPES[self.kind][0]:
            case "F32":
                floats = mx.array(raw.view("<f4"))
            case "F16":
                floats = mx.array(raw.view("<f2")).astype(mx.float32)
            case _:
                floats = mx.array(raw.view("<u2")).view(mx.bfloat16).astype(mx.float32)
        return floats.reshape(stop - start, *self.shape[1:]) - self.minus

    def packed_rows(self, start: int, stop: int) -> dict[str, mx.array]:
        """See `Matrix`. A block is a float16 scale, then its 32 levels."""
        blocks = self._read(start, stop).reshape(-1, TYPES[self.kind][2])
        d = blocks[:, :2].copy().view("<f2").reshape(stop - start, -1)
        q = blocks[:, 2:]
        if TYPES[self.kind][0] == "Q8_0":
            return grid((q ^ np.uint8(0x80)).reshape(stop - start, -1), d, 8)
        # Low halves of the 16 bytes are the first 16 weights, high halves the rest.
        levels = np.concatenate([q & 15, q >> 4], axis=1)
        return grid(levels.reshape(stop - start, -1), d, 4)

    def _read(self, start: int, stop: int) -> np.ndarray:
        width = self.nbytes // self.shape[0]
        return read_flat(self.path, self.offset + start * width, np.uint8, (stop - start) * width)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Metadata and tensors of a GGUF file; every count and length is checked against its size.

    Raises:
        EmbeddingGemmaError: not a GGUF file, damaged, or with tensors of another type.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, size)
        try:
            if (magic := reader.take(4)) != b"GGUF" or (version := reader.number("I")) not in (2, 3):
                got = (
                    f"version {version:,}" if magic == b"GGUF" else f"a file that begins with {magic!r}"
                )
                raise EmbeddingGemmaError(f"{path}: expected a GGUF file of version 2 or 3, got {got}")
            tensor_count = reader.count(24, MOST_ENTRIES)
            entry_count = reader.count(13, MOST_ENTRIES)
            metadata = {}
            for _ in range(entry_count):
                key = reader.string()
                if key in metadata:
                    raise _Damaged(f"{key!r:.80} comes twice")
                metadata[key] = reader.value()
            infos = [_info(reader) for _ in range(tensor_count)]
            alignment = metadata.get("general.alignment", 32)
            if type(alignment) is not int or alignment < 8 or alignment % 8:
                raise _Damaged(f"expected an alignment that is a multiple of 8, got {alignment!r:.40}")
            start = -(-file.tell() // alignment) * alignment
            return metadata, _tensors(path, infos, start, size, alignment)
        except (_Damaged, UnicodeDecodeError) as error:
            raise EmbeddingGemmaError(
                f"{path} is a damaged or truncated GGUF file ({error}): download it again"
            ) from None


class _Damaged(Exception):
    pass


class _Reader:
    """Reads forward, never more than the file still has."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size

    def take(self, n: int) -> bytes:
        if n > self._size - self._file.tell():
            raise _Damaged(f"{n:,} bytes expected, got {self._size - self._file.tell():,}")
        return self._file.read(n)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def count(self, smallest: int, most: int) -> int:
        """A number of things, at most `most`, that take at least `smallest` bytes each."""
        n: int = self.number("Q")
        if n > most or n * smallest > self._size - self._file.tell():
            raise _Damaged(f"expected at most {most:,} entries that fit into it, got {n:,}")
        return n

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "strict")

    def value(self) -> Any:
        kind = self.number("I")
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise _Damaged(f"expected a value of a type from 0 to 12, got type {kind}")
        inner = self.number("I")
        if inner in SCALARS:
            code = SCALARS[inner]
            n = self.count(struct.calcsize(code), MOST_ITEMS)
            return list(struct.unpack(f"<{n}{code}", self.take(n * struct.calcsize(code))))
        if inner != STRING:  # llama.cpp takes no arrays of arrays either
            raise _Damaged(f"expected an array of numbers or strings, got one of type {inner}")
        return [self.string() for _ in range(self.count(8, MOST_ITEMS))]


def _info(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, dims = reader.string(), reader.number("I")
    if not 1 <= dims <= 4:
        raise _Damaged(f"expected 1 to 4 dimensions of {name!r:.80}, got {dims:,}")
    shape = tuple(reader.number("Q") for _ in range(dims))[::-1]  # the file counts columns first
    return name, shape, reader.number("I"), reader.number("Q")


def _tensors(
    path: Path,
    infos: list[tuple[str, tuple[int, ...], int, int]],
    start: int,
    size: int,
    alignment: int,
) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    end = start
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        if kind not in TYPES:
            known = ", ".join(name for name, _, _ in TYPES.values())
            raise EmbeddingGemmaError(f"{path}: {name} has ggml type {kind}; expected one of {known}")
        tensor = GgufTensor(path, kind, shape, start + offset)
        if name in tensors:
            raise _Damaged(f"{name!r:.80} comes twice")
        if min(shape) < 1 or shape[-1] % TYPES[kind][1]:
            raise _Damaged(
                f"expected {name!r:.80} in rows of a multiple of {TYPES[kind][1]}, got {list(shape)}"
            )
        if offset % alignment or tensor.offset < end or tensor.offset + tensor.nbytes > size:
            raise _Damaged(
                f"expected {name!r:.80} ({tensor.nbytes:,} bytes) between {end:,} and {size:,}, on "
                f"a multiple of {alignment:,}, got it at {tensor.offset:,}"
            )
        end = tensor.offset + tensor.nbytes
        tensors[name] = tensor
    return tensors


def open_gguf(
    path: Path, *, dense_from: str | Path | None = None, tokenizer: str | Path | None = None
) -> Source:
    """A GGUF file as a source.

    Args:
        path: the file.
        dense_from: a checkpoint to take the dense head from, for files that lost it.
        tokenizer: a folder with tokenizer files, where the GGUF's own will not do.

    Raises:
        EmbeddingGemmaError: damaged, another architecture, or without the dense head.
    """
    metadata, found = read_gguf(path)
    if metadata.get("general.architecture") != ARCHITECTURE:
        raise EmbeddingGemmaError(
            f"{path}: expected architecture {ARCHITECTURE}, "
            f"got {metadata.get('general.architecture')!r}"
        )
    tensors = {_path_of(name): tensor for name, tensor in found.items()}
    if len(tensors) < len(found):
        raise EmbeddingGemmaError(f"{path}: expected each tensor once, got some under two names")
    try:
        raw = _config(metadata, tensors)
    except KeyError as error:
        raise EmbeddingGemmaError(f"{path} lacks {error}, which the network's shape needs") from None
    config = Config.from_dict(raw)
    head: Mapping[str, Matrix] = {p: t for p, t in sorted(tensors.items()) if p.startswith("dense.")}
    dense: tuple[int, ...] = (config.hidden_size, *(m.shape[0] for m in head.values()))
    layers: tuple[Dense, ...] = (Dense(),) * len(head)
    biases: Mapping[str, Matrix] = {}
    inputs = {path.name: path}
    if dense_from is not None:
        other = open_folder(dense_from)
        head = {p: m for p, m in other.matrices.items() if p.startswith("dense.")}
        dense = (config.hidden_size, *other.dense[1:])
        layers, biases = other.head, other.biases
        inputs |= {f"{other.name}/{name}": file for name, file in other.inputs.items()}
    if len(head) < (2 if dense_from is None else 1):
        raise EmbeddingGemmaError(
            f"{path} lacks the dense head (dense_2 and dense_3): its vectors would not be "
            "EmbeddingGemma's. Give a checkpoint that has it: --dense-from google/embeddinggemma-300m"
        )
    matrices = {p: head.get(p, tensors.get(p)) for p in layout.matrices(config, dense)}
    norms = {p: tensors.get(p) for p in layout.norms(config)}
    _check(path, config, dense, {**matrices, **norms}, tensors)
    files = _tokenizer_files(path, metadata, tokenizer)
    inputs |= {f"tokenizer/{n}": file for n, file in files.items() if isinstance(file, Path)}
    return Source(
        name=path.name,
        revision=None,
        raw=raw,
        dense=dense,
        matrices={p: m for p, m in matrices.items() if m is not None},
        norms={p: _minus_one(n) for p, n in norms.items() if n is not None},
        files=files,
        inputs=inputs,
        head=layers,
        biases=biases,
    )


def _minus_one(norm: GgufTensor) -> GgufTensor:
    return GgufTensor(norm.path, norm.kind, norm.shape, norm.offset, minus=1)


def _path_of(name: str) -> str:
    fixed = {
        "token_embd.weight": layout.TABLE,
        "output_norm.weight": "norm",
        "dense_2.weight": "dense.0",
        "dense_3.weight": "dense.1",
    }
    if name.startswith("blk."):
        _, layer, part = (*name.removesuffix(".weight").split(".", 2), "", "")[:3]
        for ours, theirs in NAMES.items():
            if part == theirs:
                return f"layers.{layer}.{ours}"
    return fixed.get(name, name)


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    def value(key: str) -> Any:
        return metadata[f"{ARCHITECTURE}.{key}"]

    head_dim, eps = value("attention.key_length"), value("attention.layer_norm_rms_epsilon")
    return {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "vocab_size": tensors[layout.TABLE].shape[0],
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,  # llama.cpp scales by the head's size
        "rms_norm_eps": round(eps, 12) if isinstance(eps, float) else eps,  # a float32 in the file
        "max_position_embeddings": value("context_length"),
        "sliding_window": value("attention.sliding_window"),
        "_sliding_window_pattern": 6,  # of every gemma-embedding, in llama.cpp's code
        "rope_theta": value("rope.freq_base"),
        "rope_local_base_freq": 10_000.0,  # likewise
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _check(
    path: Path,
    config: Config,
    dense: tuple[int, ...],
    found: Mapping[str, Matrix | None],
    tensors: Mapping[str, GgufTensor],
) -> None:
    expected = {**layout.matrices(config, dense), **layout.norms(config)}
    problems = [f"missing {p}" for p, m in found.items() if m is None]
    problems += [
        f"{p} {list(m.shape)} instead of {list(expected[p])}"
        for p, m in found.items()
        if m is not None and m.shape != expected[p]
    ]
    problems += [f"left over {p!r:.80}" for p in sorted(tensors.keys() - expected.keys())]
    problems += [f"{p} packed instead of floats" for p, m in found.items() if _packed_norm(m)]
    if problems:
        raise EmbeddingGemmaError(
            f"{path} does not hold the tensors its metadata describes: {'; '.join(problems[:8])}"
        )


def _packed_norm(matrix: Matrix | None) -> bool:
    return matrix is not None and len(matrix.shape) == 1 and matrix.settings is not None


def _tokenizer_files(
    path: Path, metadata: Mapping[str, Any], tokenizer: str | Path | None
) -> dict[str, Path | bytes]:
    if tokenizer is not None:
        folder = Path(tokenizer).expanduser()
        files: dict[str, Path | bytes] = {
            name: folder / name for name in COPIED if "token" in name and (folder / name).is_file()
        }
        if not files.keys() & {"tokenizer.json", "tokenizer.model"}:
            raise EmbeddingGemmaError(f"{folder} has neither tokenizer.json nor tokenizer.model")
        return files
    parts = [metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")]
    tokens, scores, kinds = (part if isinstance(part, list) else [] for part in parts)
    whole = (
        len(tokens) == len(scores) == len(kinds) >= 4
        and all(isinstance(token, str) for token in tokens)
        and all(isinstance(score, float) and math.isfinite(score) for score in scores)
        and set(kinds) <= set(range(1, 7))  # the types that sentencepiece knows
    )
    if metadata.get("tokenizer.ggml.model") != "llama" or not whole:
        raise EmbeddingGemmaError(
            f"{path} carries no sentencepiece tokenizer: give a folder that has one, --tokenizer"
        )
    return {"tokenizer.model": model_proto(tokens, scores, kinds)}
