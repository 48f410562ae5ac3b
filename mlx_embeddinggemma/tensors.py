"""Safetensors files, read by name and by row, without ever holding a whole file in memory.

MLX loads a tensor whole. The vocabulary table is 65 % of EmbeddingGemma and a text touches a few of
its rows, so it is read here, row by row, from the file. The header is checked against the file's
size first: a truncated download is found before any tensor is used.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON, data).
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.watched import Watched, read_into

# The format's types. numpy has no bfloat16: its bytes travel as uint16, viewed as bfloat16 in MLX. Of
# the 8-bit floats, which nothing here reads, only the size counts.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")  # that become weights
# In bytes. The format allows 100 MB, which parsed would take 2 GB; an EmbeddingGemma's takes 0.1 MB.
MAX_HEADER = 2_000_000
MAX_DIMENSIONS = 8  # no weight has more than two; a product of 900,000 sizes would take minutes


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: its file, dtype name of the format, shape, and first byte."""

    file: Watched
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.file.path

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize

    def read(self) -> mx.array:
        """The whole tensor."""
        data = np.empty(self.shape, NUMPY_DTYPES[self.dtype])
        with self.file.open() as file:
            if not read_into(file, data, self.offset):
                raise EmbeddingGemmaError(f"{self.path} became shorter while it was read")
        self.file.note(self.offset, data.reshape(-1).view(np.uint8).data)
        return self._to_mlx(data)

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> mx.array:
        """Rows of a matrix, shape (len(indices), columns), read one by one.

        `pread` and not a memory map: pages of a map count as the process's own memory, 4 KB and
        more for a row of 400 bytes.
        """
        rows = np.empty((len(indices), *self.shape[1:]), NUMPY_DTYPES[self.dtype])
        width = rows[:1].nbytes
        with self.file.open() as file:
            for row, index in zip(rows, indices.tolist(), strict=True):
                if os.preadv(file, [row.data], self.offset + index * width) != width:
                    raise EmbeddingGemmaError(f"{self.path} became shorter while it was read")
        self.file.note_rows(self.offset, self.shape[0], indices, rows)
        return self._to_mlx(rows)

    def _to_mlx(self, array: npt.NDArray[Any]) -> mx.array:
        # float64 becomes float32: what is too large becomes infinite, and is found so.
        result = mx.array(array)
        return result.view(mx.bfloat16) if self.dtype == "BF16" else result


def read_flat(path: Path, offset: int, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    """`count` numbers from byte `offset` on.

    Raises:
        EmbeddingGemmaError: the file went away or became shorter since its header was read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            flat = np.fromfile(file, dtype, count)
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    if len(flat) < count:
        raise EmbeddingGemmaError(f"{path} became shorter while it was read")
    return flat


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file by name.

    Raises:
        EmbeddingGemmaError: not a safetensors file, or one that was cut short.
    """
    try:
        with path.open("rb") as file:
            status = os.stat(file.fileno())
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) == 8 and 2 <= length <= min(MAX_HEADER, status.st_size - 8):
                text = file.read(length)
                watched = Watched(path, status)
                watched.note(0, memoryview(start + text))
                header = json.loads(text, object_pairs_hook=_unique)
                return _tensors(watched, header, 8 + length, status.st_size)
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except (RecursionError, TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, EmbeddingGemmaError):
            raise
        raise EmbeddingGemmaError(
            f"{path} is not a safetensors file: its header is damaged: expected names with dtype, "
            f"shape and data_offsets, got {str(error)[:80] or 'none'}: download it again"
        ) from None
    if start.startswith(b"version "):
        raise EmbeddingGemmaError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
        )
    raise EmbeddingGemmaError(
        f"{path} is not a safetensors file or was cut short ({status.st_size:,} bytes): expected a "
        f"header that fits into it and {MAX_HEADER:,} bytes, got {length:,}: download it again"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that comes twice")
    return found


def _whole(number: object) -> int:
    """A size or a place of this file or any other: nothing larger is multiplied, or quoted."""
    if type(number) is not int or not -(2**63) <= number < 2**63:
        raise ValueError(f"{number!r:.40} where a whole number belongs")
    return number


def _tensors(file: Watched, header: Mapping[str, Any], data_start: int, size: int) -> dict[str, Tensor]:
    path, tensors = file.path, {}
    end_of_last = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"][0]):
        begin, end = map(_whole, entry["data_offsets"])
        if entry["dtype"] not in NUMPY_DTYPES:
            raise EmbeddingGemmaError(
                f"{path}: {name!r:.80} has dtype {entry['dtype']!r:.20}; expected one of "
                f"{', '.join(NUMPY_DTYPES)}"
            )
        if len(entry["shape"]) > MAX_DIMENSIONS:
            raise ValueError(f"{len(entry['shape']):,} dimensions of {name!r:.40}")
        shape = tuple(map(_whole, entry["shape"]))
        tensor = Tensor(file, entry["dtype"], shape, data_start + begin)
        if min(shape, default=1) < 1 or tensor.nbytes != end - begin or begin != end_of_last:
            raise EmbeddingGemmaError(
                f"{path}: the place given for {name!r:.80} does not match its shape {list(shape)}: "
                f"expected {tensor.nbytes:,} bytes from {end_of_last:,} on, got {begin:,} to {end:,}: "
                "the file is damaged, download it again"
            )
        end_of_last = end
        tensors[name] = tensor
    if data_start + end_of_last != size:
        raise EmbeddingGemmaError(
            f"{path} was cut short or has bytes left over: its header describes "
            f"{data_start + end_of_last:,} bytes, the file has {size:,}: download it again"
        )
    return tensors


def read_headers(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of several files (shards) by name; a name may stand in one file only."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise EmbeddingGemmaError(f"{name!r:.80} is in both {tensors[name].path} and {path}")
            tensors[name] = tensor
    return tensors
