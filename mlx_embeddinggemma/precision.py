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
    vectors: np.ndarray, precision: str, ranges: np.ndarray | None = None
) -> np.ndarray:
    """Quantizes float vectors.

    Args:
        vectors: (n, dim) float32.
        precision: "float32" returns them as they are; "int8" and "uint8" cut each dimension's range
            into 256 steps, (n, dim); "binary" (int8) and "ubinary" (uint8) keep one bit a
            dimension, (n, dim / 8).
        ranges: (2, dim) lowest and highest value of each dimension, for int8 and uint8. Taken from
            `vectors` when not given; give them when queries and documents must be comparable.

    Raises:
        EmbeddingGemmaError: unknown precision, or a range to be taken from fewer than two vectors.
    """
    check_precision(precision)
    if precision == "float32":
        return vectors
    if precision == "ubinary":
        return np.packbits(vectors > 0, axis=-1)
    if precision == "binary":
        flipped: np.ndarray = np.packbits(vectors > 0, axis=-1) ^ 0x80
        return np.asarray(flipped.view(np.int8))  # minus 128, as int8
    kind = np.int8 if precision == "int8" else np.uint8
    if len(vectors) == 0:
        return np.zeros(vectors.shape, kind)
    if ranges is None:
        if len(vectors) < 2:
            raise EmbeddingGemmaError(
                f"{precision} scales each dimension by its range over the texts, and one text has "
                "none: encode as float32 and call quantize_embeddings with ranges"
            )
        ranges = np.vstack((vectors.min(axis=0), vectors.max(axis=0)))
    low, high = ranges.astype(np.float32)
    steps = (high - low) / 255
    steps = np.where(steps == 0, 1, steps)
    levels = np.clip(np.floor((vectors - low) / steps), 0, 255)
    return np.asarray(levels - 128 if precision == "int8" else levels, kind)
