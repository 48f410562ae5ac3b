"""How alike vectors are, by the four measures of sentence-transformers, in every precision.

Packed bits are compared as vectors of +1 and -1, so that every measure ranks them by their Hamming
distance h, exactly: the cosine is 1 - 2 h / dim. Quantized vectors are compared as the integers they
are, in float64, which holds their products exactly.
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError

Measure = Literal["cosine", "dot", "euclidean", "manhattan"]
NAMES: tuple[Measure, ...] = ("cosine", "dot", "euclidean", "manhattan")
Array = np.ndarray[Any, np.dtype[Any]]
ROWS = 4096  # of packed bits that are unpacked at a time: each takes 32 times its memory


def all_pairs(a: object, b: object, measure: Measure, dimensions: Sequence[int]) -> Array:
    """Of each vector of `a` with each of `b`: (n, dim), (m, dim) to (n, m) float32.

    Args:
        a: vectors (n, dim) or one (dim,): numpy, MLX or torch arrays, or lists of them.
        b: others of the same size and precision.
        measure: "cosine" and "dot" as usual, "euclidean" and "manhattan" distances negated.
        dimensions: that the vectors may have: packed bits have an eighth as many columns.

    Raises:
        EmbeddingGemmaError: vectors that do not go together, or are NaN or infinite.
    """
    x, y, bits = _comparable(a, b, dimensions)
    x, y = np.atleast_2d(x), np.atleast_2d(y)
    if not bits:
        return _scores(x, y, measure)
    dots = np.empty((len(x), len(y)), np.float32)
    for i in range(0, len(x), ROWS):
        for j in range(0, len(y), ROWS):
            rows, columns = slice(i, i + ROWS), slice(j, j + ROWS)
            dots[rows, columns] = _signs(x[rows], bits) @ _signs(y[columns], bits).T
    return _of_signs(dots, bits, measure)


def each_pair(a: object, b: object, measure: Measure, dimensions: Sequence[int]) -> Array:
    """Of each vector of `a` with its partner in `b`: two (n, dim) to (n,) float32; see `all_pairs`."""
    x, y, bits = _comparable(a, b, dimensions)
    try:
        x, y = np.broadcast_arrays(x, y)
    except ValueError:
        raise EmbeddingGemmaError(
            f"expected as many vectors on both sides, got {len(x)} and {len(y)}"
        ) from None
    if bits:
        dots = np.einsum("...d,...d->...", _signs(x, bits), _signs(y, bits))
        return _of_signs(dots, bits, measure)
    if measure == "cosine":
        x, y = _unit(x), _unit(y)
    if measure in ("cosine", "dot"):
        return np.asarray(np.einsum("...d,...d->...", x, y), np.float32)
    return np.asarray(-_distance(x - y, measure), np.float32)


def check_measure(name: object) -> Measure:
    """One of `NAMES`, also of sentence-transformers' `SimilarityFunction`.

    Raises:
        EmbeddingGemmaError: another.
    """
    name = getattr(name, "value", name)
    for measure in NAMES:
        if isinstance(name, str) and name == measure:
            return measure
    raise EmbeddingGemmaError(f"expected similarity_fn_name {', '.join(NAMES)}, got {name!r:.80}")


def _scores(x: Array, y: Array, measure: Measure) -> Array:
    if measure == "cosine":
        x, y = _unit(x), _unit(y)
    if measure in ("cosine", "dot"):
        return np.asarray(x @ y.T, np.float32)
    result = np.empty((len(x), len(y)), np.float32)
    for row, out in zip(x, result, strict=True):
        out[:] = -_distance(y - row, measure)
    return result


def _distance(difference: Array, measure: Measure) -> Array:
    order = 2 if measure == "euclidean" else 1
    return np.asarray(np.linalg.norm(difference, ord=order, axis=-1))


def _unit(x: Array) -> Array:
    """Of length 1; a vector of zeros stays one, as in sentence-transformers: it is like nothing."""
    # In float64, where no square of a float32 overflows.
    length = np.sqrt(np.einsum("...d,...d->...", x, x, dtype=np.float64))[..., None]
    length[length == 0] = 1
    unit: Array = np.divide(x, length, out=np.empty_like(x), casting="same_kind")
    return unit


def _signs(packed: Array, dim: int) -> Array:
    """Bits to components of +1 and -1, (n, dim) float32.

    In int8 the first of eight bits is flipped, on both sides: no measure sees it.
    """
    return np.unpackbits(packed.view(np.uint8), axis=-1, count=dim).astype(np.float32) * 2 - 1


def _of_signs(dots: Array, dim: int, measure: Measure) -> Array:
    """A measure of vectors of +1 and -1 by their products, which are whole: dim - 2 h."""
    if measure == "cosine":
        return np.asarray(dots / np.float32(dim))
    if measure == "dot":
        return dots
    twice = np.asarray(np.float32(dim) - dots)  # components of one differ from the other's by 2
    return -np.sqrt(2 * twice) if measure == "euclidean" else -twice


def _comparable(a: object, b: object, dimensions: Sequence[int]) -> tuple[Array, Array, int]:
    """Both sides as arrays to compute with, and how many bits a vector is where they are packed."""
    x, y = _array(a, "first"), _array(b, "second")
    if x.dtype != y.dtype:
        raise EmbeddingGemmaError(
            f"expected vectors of one precision, got {x.dtype} and {y.dtype}: encode both alike"
        )
    if x.shape[-1] != y.shape[-1]:
        raise EmbeddingGemmaError(
            f"expected vectors of one size, got {x.shape[-1]} and {y.shape[-1]} columns"
        )
    if x.dtype == np.float32:
        return x, y, 0
    width = x.shape[-1]
    bits = next((dim for dim in dimensions if -(-dim // 8) == width), 0)
    if bool(bits) == (width in dimensions):
        raise EmbeddingGemmaError(
            f"{x.dtype} vectors of {width} columns are neither clearly packed bits nor clearly "
            f"quantized vectors of {', '.join(map(str, dimensions))} dimensions: compare them yourself"
        )
    return (x, y, bits) if bits else (x.astype(np.float64), y.astype(np.float64), 0)


def _array(vectors: object, side: str) -> Array:
    """A vector or a matrix: int8 and uint8 as they are, all else as float32."""
    if isinstance(vectors, list | tuple):
        vectors = [_to_numpy(vector) for vector in vectors]
    try:
        array = np.asarray(_to_numpy(vectors))
        if np.issubdtype(array.dtype, np.integer) and array.dtype not in (np.int8, np.uint8):
            # Bits that went through JSON or a database: as floats they would compare otherwise.
            raise EmbeddingGemmaError(
                f"expected the {side} vectors as floats, int8 or uint8, got {array.dtype}: say which, "
                "np.asarray(vectors, np.uint8) for packed bits"
            )
        if array.dtype not in (np.int8, np.uint8):
            array = array.astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, EmbeddingGemmaError):
            raise
        raise EmbeddingGemmaError(f"expected numbers of one size in the {side} vectors") from None
    if array.ndim not in (1, 2):
        raise EmbeddingGemmaError(
            f"expected the {side} vectors as (n, dim) or (dim,), got shape {array.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(np.atleast_2d(array)).all(axis=-1))
    if len(bad):
        raise EmbeddingGemmaError(f"vector {bad[0]} of the {side} ones is NaN or infinite")
    return array


def _to_numpy(x: object) -> object:
    """MLX and torch arrays as numpy's, which knows no bfloat16."""
    if isinstance(x, mx.array):
        return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)
    torch = sys.modules.get("torch")
    if torch and isinstance(x, torch.Tensor):
        return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
    return x
