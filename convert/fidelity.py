"""How near the converted weights' vectors lie to the source's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import layout
from mlx_embeddinggemma.batching import batches, pad
from mlx_embeddinggemma.config import MATRYOSHKA
from mlx_embeddinggemma.linear import Linear
from mlx_embeddinggemma.model import Model, RMSNorm
from mlx_embeddinggemma.unit import check_unit, unit

from .sources import Matrix, Source

NEIGHBOURS = 10
BATCH_TOKENS = 2048
START_COST = 512  # each batch reads all weights again


@dataclass(frozen=True)
class Fidelity:
    """Of one dimension: cosines of each text's two vectors, and the share of kept neighbours.

    Attributes:
        mean: cosine, over the texts.
        percentile_1: cosine that 99 % of the texts exceed.
        worst: the lowest cosine.
        neighbours: share of each text's ten nearest that are the same, over the texts.
    """

    mean: float
    percentile_1: float
    worst: float
    neighbours: float

    def cells(self) -> tuple[str, ...]:
        """As a table shows them."""
        cosines = (self.mean, self.percentile_1, self.worst)
        return (*(f"{cosine:.6f}" for cosine in cosines), f"{self.neighbours:.1%}")


def compare(source: np.ndarray, converted: np.ndarray) -> dict[int, Fidelity]:
    """Fidelity at the full size and each Matryoshka dimension below it.

    Args:
        source: (n, D) unit vectors of n > 10 texts.
        converted: (n, D) of the same texts.

    Raises:
        EmbeddingGemmaError: one of them is NaN, infinite or zero, whole or cut.
    """
    D = source.shape[1]
    check_unit(source, "the source's vectors")
    check_unit(converted, "the output's vectors")
    return {dim: _at(source, converted, dim) for dim in (D, *(d for d in MATRYOSHKA if d < D))}


def _at(source: np.ndarray, converted: np.ndarray, dim: int) -> Fidelity:
    a = unit(source[:, :dim], f"the source's vectors cut to {dim}")
    b = unit(converted[:, :dim], f"the output's vectors cut to {dim}")
    cosines = np.minimum((a * b).sum(axis=1), 1)
    kept = [len(set(x) & set(y)) / NEIGHBOURS for x, y in zip(_nearest(a), _nearest(b), strict=True)]
    return Fidelity(
        mean=_rounded(float(cosines.mean())),
        percentile_1=_rounded(float(np.percentile(cosines, 1))),
        worst=_rounded(float(cosines.min())),
        neighbours=_rounded(float(np.mean(kept))),
    )


def _nearest(vectors: np.ndarray) -> np.ndarray:
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)  # a text is not its own neighbour
    return np.argsort(-similarities, axis=1, kind="stable")[:, :NEIGHBOURS]


def _rounded(x: float) -> float:
    # Beyond the sixth digit lies the rounding of float32 sums, which is nobody's property.
    return round(x, 6)


def embed(source: Source, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Vectors of token ids, (n, D) float32, with one layer's weights in memory at a time.

    A full-size float32 checkpoint holds 425 MB beside its table; this needs 20.
    """
    model = Model(source.config, Table(source.matrices[layout.TABLE]), source.dense, source.head)
    fill(model.norm, "norm", source)
    streamed: Any = model
    streamed.layers = [_Streamed(layer, f"layers.{i}", source) for i, layer in enumerate(model.layers)]
    streamed.dense = [_Streamed(dense, f"dense.{i}", source) for i, dense in enumerate(model.dense)]
    vectors = np.empty((len(ids), source.dense[-1]), np.float32)
    for batch in batches([len(row) for row in ids], BATCH_TOKENS, start_cost=START_COST):
        vectors[batch] = np.array(model(*pad([ids[i] for i in batch])))
    return vectors


class Table:
    """The vocabulary table, of which only the rows of the sample are read."""

    def __init__(self, matrix: Matrix):
        self._matrix = matrix

    def __call__(self, ids: np.ndarray) -> mx.array:
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = mx.concatenate([self._matrix.rows(i, i + 1) for i in unique.tolist()])
        return rows[mx.array(inverse.reshape(ids.shape))]


class _Streamed:
    """A module that has its weights only while it computes."""

    def __init__(self, module: Any, path: str, source: Source):
        self._module, self._path, self._source = module, path, source
        self._empty = module.parameters()

    def __call__(self, *inputs: Any) -> Any:
        for name, module in self._module.named_modules():
            fill(module, f"{self._path}.{name}".rstrip("."), self._source)
        result = self._module(*inputs)
        self._module.update(self._empty)
        mx.async_eval(result)  # while the next layer's weights are read
        mx.eval(inputs[0])  # but no further ahead: each keeps its weights until it is done
        return result


def fill(module: object, path: str, source: Source) -> None:
    """Reads the weights of a norm or a linear layer of the network."""
    if isinstance(module, RMSNorm):
        w = source.norms[path]
        module.weight = 1 + w.rows(0, w.shape[0])
    elif isinstance(module, Linear):
        matrices = [source.matrices[part] for part in layout.parts(path)]
        module.weight = mx.concatenate([matrix.rows(0, matrix.shape[0]) for matrix in matrices])
        if bias := source.biases.get(path):
            module.bias = bias.rows(0, bias.shape[0])
