"""Attention of an encoder: every token sees every real token, or those inside a window.

Shapes: B texts, L tokens, G query heads a key-value head, K key-value heads, d head size.
"""

import mlx.core as mx


def visible_keys(lengths: mx.array, L: int, radius: int | None) -> mx.array | None:
    """Which keys each query may see, or None where every query sees every key.

    Args:
        lengths: (B,) real tokens of each text; the rest of its L positions is padding.
        L: padded length.
        radius: a sliding layer's reach, `|i - j| <= radius`; None for a full layer.

    Returns:
        Boolean (B, 1, 1 or L, L), true where visible. A padding query far from any real token sees
        nothing; the softmax selects instead of adding -inf, so its row stays finite, and nobody
        reads it.
    """
    position = mx.arange(L)
    mask = None
    if bool((lengths < L).any()):
        mask = (position < lengths[:, None])[:, None, None, :]
    if radius is not None and L > radius + 1:
        near = mx.abs(position[:, None] - position) <= radius
        mask = near[None, None] if mask is None else mask & near
    return mask


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    """Softmax attention, exact.

    The G query heads that share a key-value head are folded into the sequence: one matrix product
    of L * G rows instead of G of L, and no repeated keys.

    Args:
        q: (B, L, K * G, d).
        k: (B, L, K, d).
        v: (B, L, K, d).
        mask: from `visible_keys`.
        scale: factor of the scores.

    Returns:
        (B, L, K * G * d).
    """
    B, L, H, d = q.shape
    K = k.shape[2]
    G = H // K
    q = q.reshape(B, L, K, G, d).transpose(0, 2, 1, 3, 4).reshape(B, K, L * G, d)
    if mask is not None and mask.shape[2] > 1:
        mask = mx.repeat(mask, G, axis=2)
    out = mx.fast.scaled_dot_product_attention(
        q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), scale=scale, mask=mask
    )
    return out.reshape(B, K, L, G, d).transpose(0, 2, 1, 3, 4).reshape(B, L, H * d)
