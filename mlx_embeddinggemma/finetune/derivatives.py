"""Derivatives of what the encoder computes on the CPU in ways that MLX cannot differentiate."""

from math import log
from typing import Any, cast

import mlx.core as mx

from mlx_embeddinggemma import activation, exponential, runtime
from mlx_embeddinggemma.activation import CUBIC, LINEAR

_exp2 = mx.custom_function(exponential.exp2)
_geglu = mx.custom_function(activation.geglu)


def exp2(x: mx.array) -> mx.array:
    """2**x, with a derivative."""
    return cast(mx.array, _exp2(x))


@_exp2.vjp
def _exp2_vjp(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output * log(2)


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, with a derivative on every device."""
    return activation.geglu(gate, up) if runtime.on_gpu() else cast(mx.array, _geglu(gate, up))


@_geglu.vjp
def _geglu_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
    # gelu(x) = x s(x), with s the logistic function of u = x (LINEAR + CUBIC x^2).
    x, up = primals
    square = x * x
    # Below -87 the gate is shut, and e^-u would be infinite.
    u = mx.maximum(x * (LINEAR + CUBIC * square), -87.0)
    s = 1 / (1 + exponential.exp2(u * (-1 / log(2))))
    gelu = x * s
    slope = s + gelu * (1 - s) * (LINEAR + 3 * CUBIC * square)
    return cotangent * up * slope, cotangent * gelu
