"""Linear layers over float or packed weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Linear(nn.Module):
    """`x @ W.T` for one weight, or for several that read the same input and are stored as one.

    Attributes:
        weight: (sum of outputs, inputs) floats, or packed uint32 with `scales` and maybe `biases`.
        bias: (outputs,), where there is one: in some fine-tunes' head.
    """

    def __init__(self, inputs: int, outputs: Sequence[int]):
        super().__init__()
        self.weight = mx.zeros((sum(outputs), inputs))
        self._ends = [sum(outputs[: i + 1]) for i in range(len(outputs) - 1)]
        self._quantization: dict[str, Any] = {}

    def pack(self, packed: Mapping[str, mx.array], quantization: Mapping[str, Any]) -> None:
        """Takes packed tensors ("weight", "scales", maybe "biases") in place of the floats (GPU)."""
        self._quantization = dict(quantization)
        for name, value in packed.items():
            self[name] = value

    def floats(self, dtype: mx.Dtype) -> mx.array:
        """The weight, if it is not packed: (sum of outputs, inputs)."""
        return self.weight.astype(dtype)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., inputs) to (..., sum of outputs)."""
        if not self._quantization:
            y = x @ self.floats(x.dtype).T
        else:
            y = mx.quantized_matmul(
                x, self.weight, self.scales, self.get("biases"), transpose=True, **self._quantization
            ).astype(x.dtype)
        return y + self.bias if "bias" in self else y
