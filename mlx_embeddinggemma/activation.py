"""The gated GELU, in its tanh form ("gelu_pytorch_tanh").

gelu(x) = 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^(-2u)).
"""

from functools import partial
from math import ceil, e, log2, pi, sqrt

import mlx.core as mx

from mlx_embeddinggemma import runtime
from mlx_embeddinggemma.exponential import exp2

LINEAR = 2 * sqrt(2 / pi)
CUBIC = 0.044715 * LINEAR

# Of a piece on the CPU: some ten arrays of its size live at once.
ROWS = 256


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, each (B, L, F)."""
    if runtime.on_gpu():
        return _fused(gate, up)
    B, L, _ = gate.shape
    n = min(L, ceil(B * L / ROWS))
    ends = [L * i // n for i in range(1, n)]
    pieces: list[mx.array] = []
    for g, u in zip(mx.split(gate, ends, axis=1), mx.split(up, ends, axis=1), strict=True):
        pieces.append(_plain(runtime.after(pieces[-1:], g), u))
    return mx.concatenate(pieces, axis=1)


@partial(mx.compile, shapeless=True)
def _fused(gate: mx.array, up: mx.array) -> mx.array:
    # One kernel instead of ten, which computes in float32 at no cost. Not on the CPU: there compiling
    # needs a C++ compiler and takes seconds.
    x = gate.astype(mx.float32)
    return (x * mx.sigmoid(x * (LINEAR + CUBIC * (x * x))) * up).astype(gate.dtype)


def _plain(gate: mx.array, up: mx.array) -> mx.array:
    a, b = -log2(e) * LINEAR, -log2(e) * CUBIC
    # At 128 the power is infinite and the gate shut.
    exponent = mx.minimum(gate * (a + b * (gate * gate)), 128.0)
    return (gate * up / (1 + exp2(exponent.astype(mx.float32)))).astype(gate.dtype)
