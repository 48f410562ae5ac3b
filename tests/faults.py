"""Faults put into the network or the disk on purpose, to see that a check notices them."""

import os

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


def disk_fills_at(name, monkeypatch):
    """Whatever is written to a file of this name meets a full disk, Linux's own `/dev/full`."""
    real = open

    def full(file, mode="r", *args, **kwargs):
        at_fault = "w" in mode and os.path.basename(str(file)) == name
        return real("/dev/full" if at_fault else file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    monkeypatch.setattr("io.open", full)
