"""One model.safetensors, written a few rows at a time.

Names are those that mlx-lm and mlx-embeddings expect: `model.` before all but the head.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import strict_json
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.tensors import NUMPY_DTYPES

from .formats import DTYPES
from .recipes import Format, Recipe
from .sources import Matrix, Source
from .tuning import Packer, plainly

CHUNK = 2**20  # weights in memory at a time: 4 MB as float32

SAFETENSORS_DTYPES = {
    mx.float32: "F32",
    mx.bfloat16: "BF16",
    mx.float16: "F16",
    mx.uint32: "U32",
    mx.uint8: "U8",
}


@dataclass(frozen=True)
class Piece:
    """One matrix, norm or bias of the output.

    Attributes:
        settings: as in config.json, None for floats.
        tensors: dtype and shape of each of its tensors: "weight", "scales", "biases".
        wanted: what the recipe asked for; differs from `settings` where the matrix does not divide
            into groups, and stays float.
        rows: rows `start` to `stop`, checked to be finite.
    """

    path: str
    shape: tuple[int, ...]
    settings: dict[str, Any] | None
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    wanted: Format | None
    rows: Callable[[int, int], dict[str, mx.array]]

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.path if self.path.startswith("dense.") else f"model.{self.path}"

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(nbytes(*tensor) for tensor in self.tensors.values())


def plan(source: Source, recipe: Recipe, dtype: str, pack: Packer = plainly) -> list[Piece]:
    """What the output holds, in the order of the file; one row of each matrix is read for it."""
    pieces = [
        _matrix(path, matrix, recipe.format_of(path), dtype, pack)
        for path, matrix in source.matrices.items()
    ]
    pieces += [_floats(path, norm, dtype, None) for path, norm in source.norms.items()]
    return pieces + [_floats(path, b, dtype, None, "bias") for path, b in source.biases.items()]


def _matrix(path: str, matrix: Matrix, wanted: Format | None, dtype: str, pack: Packer) -> Piece:
    if wanted is None or matrix.shape[1] % wanted.group_size:
        return _floats(path, matrix, dtype, wanted)
    settings = wanted.settings

    def rows(start: int, stop: int) -> dict[str, mx.array]:
        return _finite(path, pack(path, _finite_rows(path, matrix, start, stop), wanted, dtype))

    # Packed so already: carried over bit for bit, never packed twice.
    take = matrix.packed_rows if matrix.settings == settings else rows
    tensors = {
        # One row tells dtype and width, and says at once what cannot be packed.
        name: (SAFETENSORS_DTYPES[one.dtype], (matrix.shape[0], *one.shape[1:]))
        for name, one in take(0, 1).items()
    }
    return Piece(path, matrix.shape, settings, tensors, wanted, take)


def _floats(
    path: str, matrix: Matrix, dtype: str, wanted: Format | None, name: str = "weight"
) -> Piece:
    def rows(start: int, stop: int) -> dict[str, mx.array]:
        floats = _finite_rows(path, matrix, start, stop)
        return _finite(path, {name: floats.astype(DTYPES[dtype])})

    tensors = {name: (SAFETENSORS_DTYPES[DTYPES[dtype]], matrix.shape)}
    return Piece(path, matrix.shape, None, tensors, wanted, rows)


def _finite_rows(path: str, matrix: Matrix, start: int, stop: int) -> mx.array:
    rows = matrix.rows(start, stop)
    if not np.isfinite(np.array(rows, copy=False)).all():  # a fifth of the time that MLX's takes
        raise EmbeddingGemmaError(
            f"{path} holds NaN or infinite weights (rows {start} to {stop - 1}): "
            "the source is damaged, download it again"
        )
    return rows


def _finite(path: str, packed: dict[str, mx.array]) -> dict[str, mx.array]:
    for name, array in packed.items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise EmbeddingGemmaError(
                f"{path} holds weights too large for its {name} in {array.dtype}: use "
                "another recipe or --dtype float32"
            )
    return packed


def quantization_table(pieces: Sequence[Piece]) -> dict[str, Any]:
    """config.json's `quantization`: the commonest settings, and each matrix that differs."""
    matrices = [piece for piece in pieces if len(piece.shape) == 2]
    packed = [piece.settings for piece in matrices if piece.settings]
    if not packed:
        return {}
    common = max(packed, key=packed.count)
    others = {p.name: p.settings or False for p in matrices if p.settings != common}
    return {**common, **others}


def write(path: Path, pieces: Sequence[Piece], advance: Callable[[int], object]) -> None:
    """Writes the file.

    Args:
        path: a new file.
        pieces: from `plan`.
        advance: called with the number of weights done since the last call.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, dtype, shape in tensors(pieces):
        end = offset + nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = strict_json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            step = max(1, CHUNK // math.prod(piece.shape[1:]))
            for start in range(0, piece.shape[0], step):
                stop = min(start + step, piece.shape[0])
                for suffix, array in piece.rows(start, stop).items():
                    begin, end = header[f"{piece.name}.{suffix}"]["data_offsets"]
                    row = (end - begin) // piece.shape[0]
                    file.seek(8 + len(text) + begin + start * row)
                    file.write(_bytes(array))
                advance((stop - start) * math.prod(piece.shape[1:]))


def tensors(pieces: Iterable[Piece]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor of the file, in its order."""
    for piece in pieces:
        for suffix, (dtype, shape) in piece.tensors.items():
            yield f"{piece.name}.{suffix}", dtype, shape


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Size in bytes of a tensor of the file."""
    return math.prod(shape) * NUMPY_DTYPES[dtype].itemsize


def _bytes(array: mx.array) -> memoryview:
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)  # numpy has no bfloat16
    return np.ascontiguousarray(np.array(array)).data
