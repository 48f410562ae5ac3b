"""The head: what is done to the mean over a text's tokens, besides the products with its matrices."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

# By the class in torch.nn that sentence-transformers makes, without arguments.
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "Identity": lambda y: y,
    "Tanh": mx.tanh,
    "ReLU": lambda y: mx.maximum(y, 0),
    "GELU": lambda y: y * (1 + mx.erf(y * 2**-0.5)) / 2,
    "SiLU": lambda y: y * mx.sigmoid(y),
    "Sigmoid": mx.sigmoid,
}


@dataclass(frozen=True)
class Dense:
    """One layer of the head: `activation(W x + b)`. EmbeddingGemma's own have W alone.

    Attributes:
        activation: of `ACTIVATIONS`.
        bias: whether there is a b.
        unit_input: whether x is brought to unit length first.
    """

    activation: str = "Identity"
    bias: bool = False
    unit_input: bool = False

    def __call__(self, product: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        """(B, inputs) to (B, outputs).

        Args:
            product: W x + b.
            x: what the layer before left.
        """
        if self.unit_input:
            x = x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return ACTIVATIONS[self.activation](product(x))
