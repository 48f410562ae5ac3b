"""Vectors in fewer bits, with the arithmetic of sentence-transformers' `quantize_embeddings`."""

from typing import Literal

import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import shown

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8", "uint8", "binary", "ubinary")


def check_precision(precision: object) -> None:
    """Raises EmbeddingGemmaError for a precision that is none of `PRECISIONS`."""
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise EmbeddingGemmaError(f"expected precision {', '.join(PRECISIONS)}, got {shown(precision)}")


def quantize_embeddings(
    vectors: np.ndarray,
    precision: Precision,
    ranges: np.ndarray | None = None,
    calibration_embeddings: np.ndarray | None = None,
) -> np.ndarray:
    """Quantizes float vectors.

    Args:
        vectors: (n, dim) floats.
        precision: "float32" returns them as they are; "int8" and "uint8" cut each dimension's range
            into 256 steps, (n, dim); "binary" (int8) and "ubinary" (uint8) keep one bit a
            dimension, (n, dim / 8).
        ranges: (2, dim) lowest and highest value of each dimension, for int8 and uint8. Taken from
            `vectors` when not given; give them when queries and documents must be comparable.
        calibration_embeddings: (m, dim) vectors to take the ranges from instead.

    Raises:
        EmbeddingGemmaError: unknown precision, vectors that are no floats, or a range to be taken from
            fewer than two vectors.
    """
    check_precision(precision)
    vectors = _floats("vectors", vectors)
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 0x80).view(np.int8)  # minus 128
    kind = np.int8 if precision == "int8" else np.uint8
    if len(vectors) == 0:
        return np.zeros(vectors.shape, kind)
    if ranges is None:
        seen = vectors if calibration_embeddings is None else calibration_embeddings
        ranges = _ranges(_floats("calibration_embeddings", seen), precision)
    low, high = _rows("ranges", ranges, vectors.shape[-1])
    steps = (high - low) / 255
    steps = np.where(steps == 0, 1, steps)
    levels = np.clip(np.floor((vectors - low) / steps), 0, 255)
    return np.asarray(levels - 128 if precision == "int8" else levels, kind)


def _ranges(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    if vectors.ndim < 2 or len(vectors) < 2:
        raise EmbeddingGemmaError(
            f"{precision} scales each dimension by its range over the texts, and one text has "
            "none: encode as float32 and call quantize_embeddings with ranges"
        )
    return np.vstack((vectors.min(axis=0), vectors.max(axis=0)))


def _floats(name: str, vectors: object) -> np.ndarray:
    """As float32, which every computation here is in."""
    array = _array(name, vectors)
    if not np.issubdtype(array.dtype, np.floating) or array.ndim not in (1, 2):
        raise EmbeddingGemmaError(
            f"expected {name} as floats (n, dim) or (dim,), got {array.dtype} {array.shape}"
        )
    return _finite(name, array.astype(np.float32, copy=False))


def _array(name: str, numbers: object) -> np.ndarray:
    try:
        return np.asarray(numbers)
    except ValueError:
        raise EmbeddingGemmaError(f"expected {name} in rows of one length") from None


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise EmbeddingGemmaError(f"expected {name} of finite numbers, got NaN or infinity")
    return array


def _rows(name: str, ranges: object, dim: int) -> np.ndarray:
    array = _array(name, ranges)
    if array.shape != (2, dim) or not np.issubdtype(array.dtype, np.number):
        raise EmbeddingGemmaError(
            f"expected {name} as numbers of shape (2, {dim}), got {array.dtype} {array.shape}"
        )
    return _finite(name, array.astype(np.float32))
