"""Derivatives of what the encoder computes on the CPU in ways that MLX cannot differentiate."""

from collections.abc import Callable, Sequence
from math import log
from typing import Any, cast

import mlx.core as mx

from mlx_embeddinggemma import activation, exponential, runtime
from mlx_embeddinggemma.activation import CUBIC, LINEAR
from mlx_embeddinggemma.exponential import LOWEST


def exp2(x: mx.array) -> mx.array:
    """2**x, exactly 0 where `exponential.exp2` gives its lowest value, with a derivative."""
    # A hidden key weighs 2**-100. Times a gradient that is subnormal, and products with subnormal
    # numbers, which CPUs take many times longer for, were two thirds of a training step.
    power = mx.where(x > LOWEST, exponential.exp2(x), 0)
    return _with_derivative(power, [x], lambda cotangent: (cotangent * (power * log(2)),))


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, with a derivative on every device."""
    if runtime.on_gpu():
        return activation.geglu(gate, up)
    # gelu(x) = x s(x), with s the logistic function of u = x (LINEAR + CUBIC x^2).
    a, b = LINEAR / -log(2), CUBIC / -log(2)
    # At e^60 the gate is shut, and s, times a gradient, is not yet subnormal.
    power = exponential.exp2(mx.minimum(gate * (a + b * (gate * gate)), 60 / log(2)))
    s = 1 / (1 + power)
    gelu = gate * s

    def derivative(cotangent: mx.array) -> tuple[mx.array, mx.array]:
        slope = s + gelu * (1 - s) * (LINEAR + 3 * CUBIC * (gate * gate))
        return cotangent * up * slope, cotangent * gelu

    return _with_derivative(gelu * up, [gate, up], derivative)


def _with_derivative(
    value: mx.array, inputs: Sequence[mx.array], derivative: Callable[[mx.array], tuple[mx.array, ...]]
) -> mx.array:
    """`value`, a function of `inputs`, with the gradients that `derivative` makes of its own."""
    stream = mx.default_stream(mx.default_device())
    value = mx.stop_gradient(value)
    function = mx.custom_function(lambda *_: value)

    @function.vjp
    def vjp(inputs: Any, cotangent: mx.array, output: mx.array) -> Any:
        # MLX asks in the default stream; this is work of the core that did the forward pass.
        with mx.stream(stream):
            found = derivative(cotangent)
        return found if len(found) > 1 else found[0]

    return cast(mx.array, function(*inputs))
