"""The encoder's own network, made trainable: the same modules and weights, with derivatives.

Its modules change class, not shape. What may learn: all weights, or low-rank corrections of them
(LoRA, arXiv 2106.09685) with the weights frozen; the vocabulary table, or not, in which case it stays
on disk as in the encoder.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_embeddinggemma import layout, runtime
from mlx_embeddinggemma.attention import Span
from mlx_embeddinggemma.checkpoint import Checkpoint
from mlx_embeddinggemma.linear import Linear
from mlx_embeddinggemma.loading import load_model
from mlx_embeddinggemma.model import Attention, FeedForward, Layer, Model, RMSNorm, Rope

from .derivatives import exp2, geglu
from .grids import Grid, grid_of

Grids = Sequence[Grid | None]

LORA_SCALE = 2.0  # factor of the correction: alpha = 2 rank, the usual choice


class TrainedAttention(Attention):
    """Attention with derivatives."""

    power = staticmethod(exp2)


class TrainedFeedForward(FeedForward):
    """The feed-forward with derivatives."""

    geglu = staticmethod(geglu)


class TrainedLinear(Linear):
    """A linear layer whose weight is rounded to grids in turn, corrected by LoRA, or neither, or both.

    Attributes:
        lora_a: (rank, inputs), where there is LoRA.
        lora_b: (sum of outputs, rank): matrices stored as one share `lora_a`.
    """

    def prepare(self, grids: Grids, rank: int, key: mx.array) -> None:
        """Takes the grids, and makes the correction, which starts at zero."""
        self._grids, self._grid = grids, grids[0]
        self._rounded: tuple[list[Any], mx.array] | None = None
        if rank:
            outputs, inputs = self.weight.shape
            bound = inputs**-0.5
            self.lora_a = mx.random.uniform(-bound, bound, (rank, inputs), key=key)
            self.lora_b = mx.zeros((outputs, rank))

    def merged(self) -> mx.array:
        """The weight with its correction, (sum of outputs, inputs) float32."""
        if "lora_a" not in self:
            return self.weight
        return self.weight + LORA_SCALE * (self.lora_b @ self.lora_a)

    def floats(self, dtype: mx.Dtype) -> mx.array:
        """See `Linear`."""
        if not self._grid:
            return self.weight.astype(dtype)
        # A step's groups of texts, and its parts of them, share what is rounded.
        made_of = [self._grid, *(self[name] for name in ("weight", "lora_a", "lora_b") if name in self)]
        if not self._rounded or any(a is not b for a, b in zip(made_of, self._rounded[0], strict=True)):
            self._rounded = made_of, self._grid(self.merged())
        return self._rounded[1].astype(dtype)

    def __call__(self, x: mx.array) -> mx.array:
        """See `Linear`."""
        y = super().__call__(x)
        if "lora_a" not in self or self._grid:
            return y
        # Beside the frozen weight, whose gradient is then never computed.
        return y + LORA_SCALE * ((x @ self.lora_a.T) @ self.lora_b.T)


class CheckpointedLayer(Layer):
    """A layer that keeps its input only and computes the rest again for the gradient."""

    def __call__(self, x: mx.array, ropes: Sequence[Rope], spans: Sequence[Sequence[Span]]) -> mx.array:
        def run(parameters: Any, x: mx.array) -> mx.array:
            self.update(parameters)
            return Layer.__call__(self, x, ropes, spans)

        result: mx.array = mx.checkpoint(run)(self.trainable_parameters(), x)
        return result


class TrainedTable(nn.Module):
    """The vocabulary table in memory.

    Attributes:
        weight: (vocabulary, D).
    """

    def __init__(self, weight: mx.array, grids: Grids):
        super().__init__()
        self.weight = weight
        self._grids, self._grid = grids, grids[0]

    def __call__(self, ids: np.ndarray) -> mx.array:
        """(B, L) token ids to (B, L, D) rows."""
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = self.weight[mx.array(unique)]
        rows = self._grid(rows) if self._grid else rows
        return rows[mx.array(inverse.reshape(ids.shape))]


class FrozenTable:
    """The vocabulary table on disk, its rows rounded."""

    def __init__(self, rows: Callable[[np.ndarray], mx.array], grids: Grids):
        self._rows = rows
        self._grids, self._grid = grids, grids[0]

    def __call__(self, ids: np.ndarray) -> mx.array:
        """(B, L) token ids to (B, L, D) rows."""
        rows = self._rows(ids)
        return self._grid(rows) if self._grid else rows


def take_turn(model: Model, step: int | None) -> None:
    """Rounds to the grids of one recipe, each in turn of those `trainable` got; None rounds to none."""
    for module in (*model.modules(), model._embed_tokens):
        if isinstance(module, TrainedLinear | TrainedTable | FrozenTable):
            module._grid = None if step is None else module._grids[step % len(module._grids)]


def trainable(
    checkpoint: Checkpoint,
    *,
    quantize: Sequence[str] = (),
    lora_rank: int = 0,
    train_table: bool = False,
    checkpoint_layers: bool = False,
    seed: int = 0,
) -> Model:
    """The checkpoint's network in float32, ready to learn; packed weights are expanded.

    Args:
        checkpoint: from `open_checkpoint`.
        quantize: recipes of `grids.RECIPES` whose rounding the forward pass sees, see `take_turn`.
        lora_rank: of the corrections that learn in place of the weights; 0 trains the weights.
        train_table: whether the vocabulary table learns too.
        checkpoint_layers: trade a third of the speed for memory, see `CheckpointedLayer`.
        seed: of LoRA's starting values.
    """
    runtime.prepare_training()
    model = load_model(checkpoint, mx.float32, dequantize=True)
    key = mx.random.key(seed)
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            key, own = mx.random.split(key)
            module.weight = module.weight.astype(mx.float32)
            module.__class__ = TrainedLinear
            first = layout.parts(path)[0]  # matrices that are stored as one are packed alike
            inputs = module.weight.shape[1]
            module.prepare(_grids(quantize, first, inputs), lora_rank, own)
        elif isinstance(module, Attention):
            module.__class__ = TrainedAttention
        elif isinstance(module, FeedForward):
            module.__class__ = TrainedFeedForward
        elif isinstance(module, Layer) and checkpoint_layers:
            module.__class__ = CheckpointedLayer
    if lora_rank:
        model.freeze()
        model.unfreeze(keys=["lora_a", "lora_b"], strict=False)
    _prepare_table(model, checkpoint, quantize, train_table)
    mx.eval(model.parameters())
    return model


def _grids(recipes: Sequence[str], path: str, inputs: int) -> Grids:
    return [grid_of(recipe, path, inputs) for recipe in recipes] or [None]


def _prepare_table(
    model: Model, checkpoint: Checkpoint, quantize: Sequence[str], train_table: bool
) -> None:
    on_disk = model._table = model._embed_tokens
    grids = _grids(quantize, layout.TABLE, checkpoint.config.hidden_size)
    if train_table:
        rows = np.arange(checkpoint.config.vocab_size)
        model.embed_tokens = TrainedTable(on_disk(rows), grids)
        model._embed_tokens = model.embed_tokens
    elif any(grids):
        model._embed_tokens = FrozenTable(on_disk, grids)


def tensors(model: Model) -> dict[str, mx.array]:
    """All weights by their names in a checkpoint, corrections merged, not rounded to any grid."""
    table = f"{layout.TABLE}.weight"
    found: dict[str, mx.array] = {}
    for path, module in model.named_modules():
        if isinstance(module, RMSNorm):
            found[f"{path}.weight"] = module.weight - 1  # the checkpoint's w of 1 + w
        elif isinstance(module, TrainedLinear):
            parts = mx.split(module.merged(), module._ends)
            names = layout.parts(path)
            found |= {f"{name}.weight": part for name, part in zip(names, parts, strict=True)}
            if "bias" in module:  # a head's layer is one matrix
                found[f"{path}.bias"] = module.bias
    if isinstance(model._embed_tokens, TrainedTable):
        found[table] = model._embed_tokens.weight
    else:
        found[table] = model._table(np.arange(model._config.vocab_size))
    return found
