"""Lengths to batches of nearly equal length."""

from collections.abc import Iterator, Sequence

import numpy as np


def batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[np.ndarray]:
    """Indices of texts that go through the network together, longest texts first.

    A batch holds at most `batch_tokens` tokens, padding included (a longer text goes alone), and at
    most `batch_size` texts.
    Longest first: memory peaks at the start, where running out of it costs least.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        stop = start + max(1, min(batch_tokens // longest, batch_size or len(order)))
        yield order[start:stop]
        start = stop


def pad(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as one (B, L) int32 array padded with 0 on the right, and their lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for row, out in zip(rows, ids, strict=True):
        out[: len(row)] = row
    return ids, lengths
