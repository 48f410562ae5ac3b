"""The CPU's powers of two and gated GELU equal the real ones."""

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.activation import _fused, geglu
from mlx_embeddinggemma.exponential import exp2


def test_powers_of_two_are_within_3e_7_relative():
    x = np.concatenate([np.linspace(-100, 127, 400_001), [-0.5, 0.5, -1.5, 0, 1, -100]]).astype("f4")
    exact = np.exp2(x.astype(np.float64))
    assert (np.abs(np.array(exp2(mx.array(x))) / exact - 1)).max() < 3e-7


def test_very_negative_powers_end_where_their_products_are_still_normal():
    assert np.array(exp2(mx.array([-1e30, -1e4, -101.0]))).tolist() == [2.0**-100] * 3


def test_whole_powers_are_exact():
    assert np.array(exp2(mx.array([0.0, 1, -3, 127, 128]))).tolist() == [1, 2, 0.125, 2.0**127, np.inf]


def test_a_shut_gate_leaves_nothing():
    """A large negative gate must vanish, not leave a trace of its size; a large one pass whole."""
    values = np.array(geglu(mx.array([[[-8e5, -20.0, 8e5]]]), mx.ones((1, 1, 3))))
    assert values.tolist() == [[[0, 0, 8e5]]]


def test_gated_gelu_equals_its_definition():
    x = np.linspace(-9, 9, 100_002).reshape(2, 50_001, 1)  # many pieces, no two of them alike
    exact = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) * 3
    gate, up = mx.array(x.astype(np.float32)), mx.full(x.shape, 3.0)
    for ours in (geglu(gate, up), _fused(gate, up)):
        assert np.abs(np.array(ours) - exact).max() < 5e-6
