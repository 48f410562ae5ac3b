"""The CPU's tanh and gated GELU equal the real ones."""

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.activation import geglu, rational_tanh


def test_rational_tanh_is_within_4e_7_of_tanh():
    x = np.concatenate([np.linspace(-12, 12, 400_001), [-1e38, -1e6, 1e6, 1e38]])
    error = np.abs(np.array(rational_tanh(mx.array(x.astype(np.float32)))) - np.tanh(x.astype("f4")))
    assert error.max() < 4e-7


def test_tanh_ends_at_one():
    """A large negative gate must vanish, not leave a trace of its size."""
    assert np.array(rational_tanh(mx.array([-8e5, -20, 20, 8e5]))).tolist() == [-1, -1, 1, 1]
    assert np.array(geglu(mx.array([-8e5, -20.0]), mx.array([1.0, 1.0]))).tolist() == [0, 0]


def test_gated_gelu_equals_its_definition():
    x = np.linspace(-9, 9, 100_001)
    exact = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) * 3
    ours = np.array(geglu(mx.array(x.astype(np.float32)), mx.full(x.shape, 3.0)))
    assert np.abs(ours - exact).max() < 1e-5
