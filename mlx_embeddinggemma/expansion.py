"""Packed and 16-bit weights on the CPU: expanded to floats for each batch, a layer at a time.

MLX's quantized product is scalar there and rounds to bfloat16 on the way; expanded weights go through
the fast one. A layer's weights are expanded once for all parts of a batch, by all cores together, and
are gone when the layer is done.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_embeddinggemma import runtime


class Expanded:
    """A module whose linear layers have weights only while it computes.

    Several threads may call it at once: each fills its own copy.

    Args:
        module: its linear layers' own weights are not used.
        weights: by a linear layer's path within the module ("" is the module itself), what gives its
            floats (sum of outputs, inputs).
    """

    def __init__(self, module: nn.Module, weights: dict[str, Callable[[], mx.array]]):
        self._module = module
        # Dealt out in turns, the largest with the smallest, two cores get about as much.
        linears = dict(module.named_modules())
        order = sorted(weights, key=lambda path: -linears[path].weight.size)
        self._weights = {path: weights[path] for path in order[:2] + order[:1:-1]}

    def __call__(self, x: mx.array, *inputs: Any) -> Any:
        module = _copied(self._module)
        linears = dict(module.named_modules())
        floats = runtime.each(lambda read: read(), list(self._weights.values()))
        mx.async_eval(floats)  # all at once: MLX looks only some ten operations ahead
        for path, weight in zip(self._weights, floats, strict=True):
            linears[path].weight = weight
        result = module(x, *inputs)
        del (
            module,
            linears,
            floats,
            weight,
        )  # the graph alone holds the weights now, and lets go of them
        mx.async_eval(result)  # while the next layer's weights are read
        mx.eval(x)  # but no further ahead, so that memory holds two layers' at most
        return result


def _copied(module: nn.Module) -> nn.Module:
    result = copy(module)
    for name, child in result.items():
        if isinstance(child, nn.Module):
            result[name] = _copied(child)
    return result
