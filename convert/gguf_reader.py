"""The GGUF format: metadata and tensors of a file, each count and length checked before it is believed.

A reader of our own: the `gguf` package believes a file's counts and lengths, and maps it whole.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.tensors import read_flat

from .formats import grid
from .recipes import FIXED

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
# Other types by name, to say what a file holds.
UNREAD = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


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
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    with file:
        reader = _Reader(file, size)
        try:
            _check_version(path, reader)
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


def _check_version(path: Path, reader: "_Reader") -> None:
    magic = reader.take(4)
    if magic != b"GGUF":
        pointer = (
            "a Git LFS pointer: run `git lfs pull`" if magic == b"vers" else f"{magic!r} at its start"
        )
        raise EmbeddingGemmaError(
            f"{path}: expected a GGUF file or a checkpoint's folder, got {pointer}"
        )
    version = reader.number("I")
    if version not in (2, 3):
        other = "big-endian: turn it with `gguf-convert-endian FILE little`"
        got = f"version {version:,}: convert the model again" if version % 2**16 else other
        raise EmbeddingGemmaError(f"{path}: expected a GGUF file of version 2 or 3, got {got}")


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
            raise EmbeddingGemmaError(
                f"{path}: {name!r:.80} is {UNREAD.get(kind, f'of ggml type {kind}')}; expected one of "
                f"{known}: take such a file of the model, or make one with "
                "`llama-quantize --allow-requantize FILE.gguf NEW.gguf Q8_0`"
            )
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
