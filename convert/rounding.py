"""Affine rounding that makes the least of the error that matters: e^T H e over a row's errors e.

Column after column is rounded, and its error is made good by the columns that still come, as far as H
lets them (GPTQ, arXiv 2210.17323, without an inverse, as in arXiv 2307.13304); a group's scale and bias
are searched for when its turn comes.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .recipes import Format

DAMPING = 0.1  # of the mean diagonal: what the texts did not show still matters
RANGES = (1.0, 0.93, 0.86, 0.79, 0.72)  # shares of a group's span that its levels may cover

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Feedback:
    """H = A diag(cost) A^T, A upper triangular with ones on its diagonal.

    Attributes:
        shares: A: what of a column's error each later column makes good.
        cost: of an error that no later column can make good, by column.
    """

    shares: Floats
    cost: Floats


def feedback(hessian: Floats) -> Feedback:
    """What the rounding of a column costs and passes on."""
    h = hessian[::-1, ::-1].copy()
    h[np.diag_indices_from(h)] += DAMPING * np.trace(h) / len(h) + 1e-30
    # Turned around H is L L^T, L lower; so H is R R^T, R upper.
    R = np.linalg.cholesky(h)[::-1, ::-1].astype(np.float32)
    diagonal = R.diagonal().copy()
    R /= diagonal
    return Feedback(R, diagonal**2)


def round_rows(
    rows: mx.array, passed: Feedback, chosen: Format, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """Rounds and packs.

    Args:
        rows: (n, inputs) float32.
        passed: from `feedback`.
        chosen: an affine format.
        dtype: of scales and biases.

    Returns:
        "weight" (n, inputs * bits / 32) uint32, "scales" and "biases" (n, groups).
    """
    w = np.array(rows).T.copy()  # a column of the matrix lies together
    wanted = w.copy()  # `w` with what the columns before leave to make good
    inputs, n = w.shape
    size, top = chosen.group_size, np.float32(2**chosen.bits - 1)
    levels = np.empty((inputs, n), np.uint8)
    scales, biases = np.empty((2, inputs // size, n), np.float32)
    for group, start in enumerate(range(0, inputs, size)):
        stop = start + size
        block, shares = wanted[start:stop], passed.shares[start:stop]
        s, b = scales[group], biases[group] = _search(block, passed.cost[start:stop, None], top, dtype)
        errors = w[start:stop]
        for i in range(size):
            q = np.clip(np.rint((block[i] - b) / s), 0, top)
            levels[start + i] = q
            errors[i] -= s * q + b
            block[i + 1 :] += shares[i, start + i + 1 : stop, None] * errors[i]
        wanted[stop:] += shares[:, stop:].T @ errors
    return {
        "weight": mx.array(_packed(levels.T, chosen.bits)),
        "scales": mx.array(scales.T).astype(dtype),
        "biases": mx.array(biases.T).astype(dtype),
    }


def _search(w: Floats, cost: Floats, top: np.float32, dtype: mx.Dtype) -> tuple[Floats, Floats]:
    """Scale and bias (n,) of a group (size, n): of several spans, each fitted, the cheapest."""
    low, high = w.min(axis=0), w.max(axis=0)
    best = np.full(w.shape[1], np.inf, np.float32)
    scale, bias = np.empty((2, w.shape[1]), np.float32)
    for share in RANGES:
        s = share * (high - low) / top
        s[s == 0] = 1
        s, b = _fitted(w, cost, np.clip(np.rint((w - (low + high) / 2) / s + top / 2), 0, top))
        s, b = _rounded(s, dtype), _rounded(b, dtype)
        s[s == 0] = 1
        error = w - (s * np.clip(np.rint((w - b) / s), 0, top) + b)
        total = (cost * error * error).sum(axis=0)
        better = total < best
        best[better], scale[better], bias[better] = total[better], s[better], b[better]
    return scale, bias


def _fitted(w: Floats, cost: Floats, q: Floats) -> tuple[Floats, Floats]:
    """Scale and bias with the least weighted squares of w - (scale * q + bias)."""
    weight = cost / cost.sum()
    mean_q, mean_w = (weight * q).sum(axis=0), (weight * w).sum(axis=0)
    centred = q - mean_q
    variance = (weight * centred * centred).sum(axis=0)
    s = np.divide(
        (weight * centred * w).sum(axis=0), variance, out=np.zeros_like(mean_w), where=variance > 0
    )
    return s, mean_w - s * mean_q


def _rounded(x: Floats, dtype: mx.Dtype) -> Floats:
    return np.array(mx.array(x).astype(dtype).astype(mx.float32))


def _packed(levels: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint32]:
    """(n, inputs) levels as MLX stores them: one run of bits a row, the lowest first."""
    places = np.arange(bits, dtype=np.uint8)
    run = (levels[..., None] >> places) & 1
    packed = np.packbits(run.reshape(len(levels), -1), axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4")
