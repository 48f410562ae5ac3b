"""The gated GELU, in its tanh form ("gelu_pytorch_tanh")."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_embeddinggemma import runtime

# MLX's CPU tanh is scalar (10 ns and more an element); its arithmetic is vectorised. So there tanh is
# x P(x^2) / Q(x^2), fitted here by reweighted least squares on [0, 9.02], beyond which tanh rounds to
# 1 in float32. Largest error in float32: 3.4e-7.
LIMIT = 9.02
P = (0.999999904, 0.133718625, 0.00348500146, 2.04460092e-05, 1.31487335e-08)
Q = (1.0, 0.467051586, 0.0258359531, 0.000326880915, 7.68808018e-07)


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, with gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return _fused(gate, up) if runtime.on_gpu() else _geglu(gate, up, rational_tanh)


def _geglu(gate: mx.array, up: mx.array, tanh: Callable[[mx.array], mx.array]) -> mx.array:
    inner = gate * (0.7978845608028654 + 0.035677408136300125 * (gate * gate))
    return (0.5 * gate) * (1 + tanh(inner)) * up


# One kernel instead of ten. Not on the CPU: there compiling needs a C++ compiler and takes seconds.
_fused = mx.compile(partial(_geglu, tanh=mx.tanh), shapeless=True)


def rational_tanh(x: mx.array) -> mx.array:
    """The tangent in plain arithmetic, float32."""
    x = mx.clip(x, -LIMIT, LIMIT)
    y = x * x
    numerator, denominator = P[-1] * y + P[-2], Q[-1] * y + Q[-2]
    for p, q in zip(P[-3::-1], Q[-3::-1], strict=True):
        numerator, denominator = numerator * y + p, denominator * y + q
    return mx.clip(x * numerator / denominator, -1, 1)
