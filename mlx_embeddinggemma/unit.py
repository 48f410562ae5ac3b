"""Vectors of unit length: the promise of every vector that leaves this package, and its check.

Asking for finite numbers is not enough. One flipped bit makes a weight 1.6e29; the norm of what it
touches overflows to infinity, and a vector divided by infinity is zero: finite, and like no text.
"""

import numpy as np
import numpy.typing as npt

from mlx_embeddinggemma.errors import EmbeddingGemmaError

TOLERANCE = 1e-3  # of a length; float32 keeps a unit vector to 1e-6


def not_unit(vectors: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Indices of the rows of (n, dim) that are NaN, infinite, zero or of another length than 1."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(np.asarray(vectors), axis=1)
        return np.flatnonzero(~(np.abs(lengths - 1) <= TOLERANCE))  # NaN is not within it either


def check_unit(vectors: npt.ArrayLike, whose: str) -> None:
    """Refuses vectors that are not of unit length.

    Args:
        vectors: (n, dim).
        whose: what the message calls them, such as "the source's vectors".

    Raises:
        EmbeddingGemmaError: one of them is NaN, infinite, zero or of another length.
    """
    if len(bad := not_unit(vectors)):
        raise EmbeddingGemmaError(
            f"{whose} came out as NaN, infinite or zero ({len(bad)} of {len(np.asarray(vectors))}, the "
            f"first is {bad[0]}): the weights are damaged, or their activations overflow"
        )


def unit(vectors: npt.NDArray[np.float32], whose: str) -> npt.NDArray[np.float32]:
    """Rows of (n, dim) brought to unit length.

    Raises:
        EmbeddingGemmaError: one of them has no direction; see `check_unit`.
    """
    with np.errstate(all="ignore"):
        result: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    check_unit(result, whose)
    return result
