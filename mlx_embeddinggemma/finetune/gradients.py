"""The loss of a batch and its gradient, all at once or in pieces that fit in memory.

An in-batch loss ties all texts of a batch together, so its gradient cannot be summed over smaller
batches. But it can be cut at the vectors (GradCache, arXiv 2101.06983): embed piece by piece, keeping
vectors only; take the loss's gradient at the vectors; then embed each piece again and push its part of
that gradient through the network. The sum is the large batch's gradient, for a third more time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_embeddinggemma import runtime
from mlx_embeddinggemma.batching import batches, pad
from mlx_embeddinggemma.model import Model

from .batches import Batch
from .losses import Loss

Ids = Sequence[Sequence[int]]


def embed(model: Model, ids: Ids) -> mx.array:
    """Unit vectors (n, size) of token ids, in their order; texts of like length go together."""
    lengths = [len(row) for row in ids]
    groups = list(batches(lengths, runtime.batch_tokens()))
    vectors = mx.concatenate([model(*pad([ids[i] for i in group])) for group in groups])
    return vectors[mx.array(np.argsort(np.concatenate(groups)))]


def loss_and_gradient(
    model: Model, loss: Loss, batch: Batch, ids: Ids, mini_batch_size: int | None = None
) -> tuple[mx.array, Any]:
    """The loss and its gradient for all that may learn, a tree like `model.trainable_parameters()`.

    Args:
        model: from `trainable`.
        loss: from `losses.build`.
        batch: its texts.
        ids: tokens of each of them.
        mini_batch_size: texts that go through the network at a time; all at once by default.
    """

    def of_vectors(vectors: mx.array) -> mx.array:
        columns = mx.array(batch.columns)
        return loss([vectors[column] for column in columns], batch.targets)

    parameters = model.trainable_parameters()
    if mini_batch_size is None or mini_batch_size >= len(ids):
        return _with_gradient(model, parameters, lambda: of_vectors(embed(model, ids)))
    order = np.argsort([-len(row) for row in ids], kind="stable")
    pieces = [order[i : i + mini_batch_size] for i in range(0, len(ids), mini_batch_size)]
    parts = []
    for piece in pieces:
        parts.append(embed(model, [ids[i] for i in piece]))
        mx.eval(parts[-1])
    back = mx.array(np.argsort(order))
    slope: mx.array
    value, slope = mx.value_and_grad(of_vectors)(mx.concatenate(parts)[back])
    total = None
    for piece in pieces:

        def pushed(piece: np.ndarray = piece) -> mx.array:
            vectors = embed(model, [ids[i] for i in piece])
            return (vectors * slope[mx.array(piece)]).sum()

        _, gradient = _with_gradient(model, parameters, pushed)
        total = gradient if total is None else tree_map(mx.add, total, gradient)
        mx.eval(total)
    return value, total


def _with_gradient(
    model: Model, parameters: Any, compute: Callable[[], mx.array]
) -> tuple[mx.array, Any]:
    def of_parameters(parameters: Any) -> mx.array:
        model.update(parameters)
        return compute()

    value, gradient = mx.value_and_grad(of_parameters)(parameters)
    model.update(parameters)
    return value, gradient
