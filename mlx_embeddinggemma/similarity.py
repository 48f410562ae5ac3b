"""How alike two vectors are, by the functions that a checkpoint may name; higher is always more alike.

Distances come negated, as sentence-transformers gives them, and are computed in float64: the usual
way to many distances at once, by products, loses half of float32's digits between near vectors.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def _unit(a: Floats) -> Floats:
    length: Floats = np.linalg.norm(a, axis=-1, keepdims=True)
    unit: Floats = a / np.maximum(length, 1e-12)
    return unit


def _euclidean(a: Floats, b: Floats) -> Floats:
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares: Floats = (a * a).sum(-1)[:, None] + (b * b).sum(-1) - 2 * (a @ b.T)
    return np.asarray(-np.sqrt(np.maximum(squares, 0)))


def _manhattan(a: Floats, b: Floats) -> Floats:
    return np.stack([-np.abs(b - row).sum(-1) for row in a]) if len(a) else a @ b.T


# (n, dim), (m, dim) to (n, m)
MATRIX: dict[str, Callable[[Floats, Floats], Floats]] = {
    "cosine": lambda a, b: _unit(a) @ _unit(b).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}
# (n, dim), (n, dim) to (n,)
PAIRWISE: dict[str, Callable[[Floats, Floats], Floats]] = {
    "cosine": lambda a, b: np.asarray((_unit(a) * _unit(b)).sum(-1)),
    "dot": lambda a, b: np.asarray((a * b).sum(-1)),
    "euclidean": lambda a, b: np.asarray(-np.linalg.norm(a - b, axis=-1)),
    "manhattan": lambda a, b: np.asarray(-np.abs(a - b).sum(-1)),
}
NAMES = tuple(MATRIX)


def similarity(name: str, a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Each vector of `a` with each of `b`: (n, dim) or (dim,), (m, dim) or (dim,) to (n, m) float32."""
    one, other = (np.atleast_2d(np.asarray(x, np.float32)) for x in (a, b))
    return MATRIX[name](one, other).astype(np.float32)


def similarity_pairwise(name: str, a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Each vector of `a` with its partner in `b`: two (n, dim) to (n,) float32."""
    result = PAIRWISE[name](np.asarray(a, np.float32), np.asarray(b, np.float32))
    return np.asarray(result, np.float32)
