"""Texts are cut into batches that hold them all, fit, and cost the least."""

from itertools import combinations

import numpy as np
import pytest

from mlx_embeddinggemma import runtime
from mlx_embeddinggemma.batching import batches


def cost(lengths, cut):
    return sum(runtime.start_cost() + len(batch) * max(lengths[i] for i in batch) for batch in cut)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("batch_tokens", [64, 256, 16_384])
def test_all_texts_once_longest_first_within_the_limits(batch_tokens, batch_size):
    lengths = np.random.default_rng(0).integers(3, 300, 100).tolist()
    cut = list(batches(lengths, batch_tokens, batch_size))
    joined = [lengths[i] for batch in cut for i in batch]
    assert joined == sorted(lengths, reverse=True)
    assert len(set(np.concatenate(cut).tolist())) == len(lengths)
    for batch in cut:
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= batch_tokens
        assert len(batch) <= (batch_size or len(lengths))


@pytest.mark.parametrize("seed", range(8))
def test_no_other_cut_costs_less(seed):
    generator = np.random.default_rng(seed)
    lengths = sorted(generator.integers(3, 200, 9).tolist(), reverse=True)
    n = len(lengths)
    every = [
        [range(a, b) for a, b in zip((0, *ends), (*ends, n), strict=True)]
        for count in range(n)
        for ends in combinations(range(1, n), count)
    ]
    assert cost(lengths, batches(lengths, 10_000)) == min(cost(lengths, cut) for cut in every)


def test_short_texts_do_not_wait_for_a_long_one():
    assert [len(batch) for batch in batches([10] * 12 + [200], 16_384)] == [1, 12]


def test_no_texts_no_batches():
    assert list(batches([], 64)) == []


def test_where_a_start_costs_much_texts_of_unlike_length_go_together():
    lengths = [3, 90, 91, 120]
    assert [len(batch) for batch in batches(lengths, 16_384, start_cost=0)] == [1, 1, 1, 1]
    assert [len(batch) for batch in batches(lengths, 16_384, start_cost=2048)] == [4]
