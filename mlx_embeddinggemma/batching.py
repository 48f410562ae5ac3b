"""Lengths to batches of nearly equal length."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from mlx_embeddinggemma import runtime


def batches(
    lengths: Sequence[int],
    batch_tokens: int,
    batch_size: int | None = None,
    start_cost: int | None = None,
) -> Iterator[np.ndarray]:
    """Indices of texts that go through the network together, longest texts first.

    A batch holds at most `batch_tokens` tokens, padding included (a longer text goes alone), and at
    most `batch_size` texts. Of all ways to cut the sorted texts it is the one with the fewest tokens,
    `start_cost` of them for every batch (by default `runtime.start_cost`).
    Longest first: memory peaks at the start, where running out of it costs least.
    """
    start_cost = runtime.start_cost() if start_cost is None else start_cost
    order = np.argsort(-np.asarray(lengths), kind="stable")
    n = len(order)
    cost = np.full(n + 1, np.inf)  # of the first texts, and where their last batch begins
    cost[0], begin = 0, np.zeros(n + 1, int)
    for start, longest in enumerate(np.asarray(lengths)[order]):
        most = max(1, min(batch_tokens // longest, batch_size or n, n - start))
        stops = slice(start + 1, start + most + 1)
        through = cost[start] + start_cost + longest * np.arange(1, most + 1)
        begin[stops] = np.where(through < cost[stops], start, begin[stops])
        cost[stops] = np.minimum(through, cost[stops])
    cuts = [n]
    while cuts[-1]:
        cuts.append(int(begin[cuts[-1]]))
    for start, stop in pairwise(reversed(cuts)):
        yield order[start:stop]


def pad(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as one (B, L) int32 array padded with 0 on the right, and their lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for row, out in zip(rows, ids, strict=True):
        out[: len(row)] = row
    return ids, lengths
