"""Faults put into the network on purpose, to see that a check notices them."""

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import attention


def causal(lengths, L, radius, part):
    """In the place of `attention.spans`: tokens see only what stands before them."""
    after = np.triu(np.full((L, L), attention.HIDDEN, np.float32), 1)[part][None, None, :, None, :]
    return [attention.Span(slice(0, part.stop - part.start), slice(0, L), mx.array(after))]


def unpadded(lengths, L, radius, part):
    """In the place of `attention.spans`: padding is seen like any token."""
    return attention.spans(np.full_like(lengths, L), L, radius, part)
