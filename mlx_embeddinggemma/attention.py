"""Attention of an encoder: every token sees every real token, or those within a window.

Long texts go through in blocks of queries, each beside just the keys it can see: exact, with a third
of the scores on sliding layers at 2,048 tokens, and scores in memory that grow with the length
instead of its square.

Shapes: B texts, L tokens, K key-value heads, G query heads to each of them, d head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import e, log2

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import runtime

# Added to a hidden key's score: finite, so that a padding query that sees nothing keeps a finite row
# (which nobody reads) and not one of NaN, which would spread through the values' product; and so
# large that beside a visible key it weighs nothing, exactly. Adding is 5 times faster than selecting
# on the CPU. Its dtype is the scores', never a weight's.
HIDDEN = -1e30


@dataclass(frozen=True)
class Span:
    """A block of queries and the keys it sees.

    Attributes:
        mask: (B or 1, 1, queries, 1, keys), 0 where visible, else `HIDDEN`; None where all are.
    """

    queries: slice
    keys: slice
    mask: mx.array | None


def spans(
    lengths: np.ndarray, L: int, radius: int | None, part: slice, block: int | None = None
) -> list[Span]:
    """Who sees whom in one kind of layer, for a part of a padded batch.

    Args:
        lengths: (B,) real tokens of each text; the rest of its L positions is padding.
        L: padded length.
        radius: a sliding layer's reach, `|i - j| <= radius`; None for a full layer.
        part: the positions whose queries these are; a span's queries count from its start.
        block: queries of a span; by default what is best on this machine.
    """
    keys = L if radius is None else min(L, 2 * radius)
    step = block or runtime.query_block(len(lengths), part.stop - part.start, keys)
    result = []
    for start in range(part.start, part.stop, step):
        stop = min(start + step, part.stop)
        first, last = (0, L) if radius is None else (max(0, start - radius), min(L, stop + radius))
        q, k = np.arange(start, stop)[:, None, None], np.arange(first, last)
        mask = np.ones((1, 1, stop - start, 1, last - first), bool)
        if radius is not None:
            mask = mask & (np.abs(q - k) <= radius)
        if lengths.min() < last:
            mask = mask & (k < lengths[:, None, None, None, None])
        added = None if mask.all() else mx.array(np.where(mask, 0, HIDDEN).astype(np.float32))
        result.append(Span(slice(start - part.start, stop - part.start), slice(first, last), added))
    return result


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    layer_spans: Sequence[Span],
    scale: float,
    power: Callable[[mx.array], mx.array],
) -> mx.array:
    """Softmax attention, exact.

    The G query heads that share a key-value head are folded into the sequence: one matrix product
    of L * G rows instead of G of L rows, no key repeated, and with K = 1 nothing moves in memory.

    Args:
        q: (B, L, K * G, d), of all positions or a part of them.
        k: (B, positions, K, d).
        v: (B, positions, K, d).
        layer_spans: from `spans`.
        scale: factor of the scores.
        power: 2**x, which the CPU's softmax is made of.

    Returns:
        (B, L, K * G * d).
    """
    B, L, H, d = q.shape
    K = k.shape[2]
    # The CPU takes the exponentials to base 2.
    scale *= 1 if runtime.on_gpu() else log2(e)
    q = q.reshape(B, L, K, H // K, d).transpose(0, 2, 1, 3, 4) * scale
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    blocks: list[mx.array] = []
    for span in layer_spans:
        queries = runtime.after(blocks[-1:], q[:, :, span.queries])
        blocks.append(_attend(queries, k[..., span.keys], v[:, :, span.keys], span.mask, power))
    out = mx.concatenate(blocks, axis=2)
    return out.transpose(0, 2, 1, 3, 4).reshape(B, L, H * d)


def _attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    mask: mx.array | None,
    power: Callable[[mx.array], mx.array],
) -> mx.array:
    """(B, K, L, G, d) queries, (B, K, d, S) keys, (B, K, S, d) values to (B, K, L, G, d)."""
    B, K, L, G, d = q.shape
    scores = (q.reshape(B, K, L * G, d) @ k).reshape(B, K, L, G, -1)
    if mask is not None:
        scores = scores + mask.astype(scores.dtype)
    if runtime.on_gpu():
        weights = mx.softmax(scores, axis=-1, precise=True)
        return (weights.reshape(B, K, L * G, -1) @ v).reshape(B, K, L, G, d)
    # Whatever is subtracted cancels out: it needs no gradient.
    largest = mx.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = power((scores - largest).astype(mx.float32))
    values = (weights.astype(v.dtype).reshape(B, K, L * G, -1) @ v).reshape(B, K, L, G, d)
    return (values / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
