"""Losses on sentence vectors, by the names and with the arithmetic of sentence-transformers.

A loss takes the columns of a batch, each (B, d): anchors first, then positives, then hard negatives;
and the batch's `Targets`. All of them see directions only, so vectors need not be of unit length, and
the Matryoshka wrapper just cuts them.

Shapes: B rows, C candidates (B positives, then B of each column of hard negatives), d dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import mlx.core as mx

from mlx_embeddinggemma.config import MATRYOSHKA

HIDDEN = -1e30  # added to a score: its softmax weight is exactly 0
Hardness = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]


@dataclass(frozen=True)
class Targets:
    """What a batch says beside its texts; each loss reads its own part.

    Attributes:
        scores: (B,) how alike the pairs are, for `cosent` and `cosine_similarity`.
        hidden: (B, C) candidates that are no negatives: duplicates, the same label, padding.
        teacher: (B, columns, size) the teacher's vectors.
    """

    scores: mx.array | None = None
    hidden: mx.array | None = None
    teacher: mx.array | None = None


Loss = Callable[[Sequence[mx.array], Targets], mx.array]


def unit(x: mx.array) -> mx.array:
    """Rows of unit length; a zero row stays zero."""
    # The square root's slope at 0 is infinite: the floor is inside it.
    return x * mx.rsqrt(mx.maximum((x * x).sum(axis=-1, keepdims=True), 1e-24))


def multiple_negatives_ranking(
    columns: Sequence[mx.array],
    targets: Targets,
    *,
    scale: float = 20.0,
    hardness: Hardness | None = None,
    strength: float = 5.0,
) -> mx.array:
    """InfoNCE: each anchor's positive against every other candidate of the batch.

    Args:
        columns: anchors, positives, and any columns of hard negatives.
        targets: `hidden`, where given, takes candidates out.
        scale: 1 / temperature.
        hardness: which negatives weigh exp(strength * similarity) more: "hard_negatives" (the row's
            own; EmbeddingGemma, arXiv 2509.20354), "in_batch_negatives" (arXiv 2503.04812), or
            "all_negatives".
        strength: 5 in EmbeddingGemma.
    """
    anchors, candidates = unit(columns[0]), unit(mx.concatenate(list(columns[1:])))
    similarity = anchors @ candidates.T
    scores = similarity * scale
    B = len(anchors)
    own = mx.tile(mx.eye(B), (1, len(columns) - 1))
    if hardness:
        hard = mx.where(mx.arange(len(candidates)) >= B, own, 0)
        weighed = {
            "hard_negatives": hard,
            "in_batch_negatives": 1 - own,
            "all_negatives": 1 - own + hard,
        }
        scores = scores + strength * mx.stop_gradient(similarity) * weighed[hardness]
    if targets.hidden is not None:
        scores = scores + mx.where(targets.hidden, HIDDEN, 0.0)
    right = mx.diagonal(scores[:, :B])
    return (mx.logsumexp(scores, axis=1) - right).mean()


def cosent(columns: Sequence[mx.array], targets: Targets, *, scale: float = 20.0) -> mx.array:
    """CoSENT: every pair of rows should have its similarities in the order of its scores.

    log(1 + sum of exp(scale * (similarity_i - similarity_j)) over score_i < score_j), as at
    https://kexue.fm/archives/8847.
    """
    assert targets.scores is not None
    s = scale * (unit(columns[0]) * unit(columns[1])).sum(axis=-1)
    wrong = targets.scores[:, None] < targets.scores[None, :]
    differences = mx.where(wrong, s[:, None] - s[None, :], HIDDEN)
    return mx.logsumexp(mx.concatenate([mx.zeros((1,)), differences.reshape(-1)]))


def cosine_similarity(columns: Sequence[mx.array], targets: Targets) -> mx.array:
    """Mean squared difference between a pair's cosine and its score."""
    assert targets.scores is not None
    cosine = (unit(columns[0]) * unit(columns[1])).sum(axis=-1)
    return (cosine - targets.scores).square().mean()


def embedding_matching(columns: Sequence[mx.array], targets: Targets) -> mx.array:
    """Distillation to a teacher's vectors: 1 - cosine, mean over rows and columns."""
    assert targets.teacher is not None
    student = mx.stack(list(columns), axis=1)
    teacher = targets.teacher[..., : student.shape[-1]]
    return (1 - (unit(student) * unit(teacher)).sum(axis=-1)).mean()


def similarity_matching(columns: Sequence[mx.array], targets: Targets) -> mx.array:
    """Distillation to a teacher's similarities: the teacher may have another number of dimensions.

    Mean squared difference between the similarity matrices of all texts of the batch.
    """
    assert targets.teacher is not None
    student = unit(mx.concatenate(list(columns)))
    teacher = unit(mx.concatenate([targets.teacher[:, i] for i in range(len(columns))]))
    return (student @ student.T - teacher @ teacher.T).square().mean()


def spread_out(columns: Sequence[mx.array]) -> mx.array:
    """Global orthogonal regularisation: vectors of unrelated texts like random ones (arXiv 1708.06320).

    The second moment of the similarities within a column, over the 1 / d that random vectors have;
    summed over anchors and positives, as in EmbeddingGemma.
    """
    total = mx.array(0.0)
    for column in columns[:2]:
        B, d = column.shape
        x = unit(column)
        similarity = (x @ x.T) * (1 - mx.eye(B))
        total = total + mx.maximum(similarity.square().sum() / max(B * (B - 1), 1) - 1 / d, 0)
    return total


def matryoshka(loss: Loss, dims: Sequence[int]) -> Loss:
    """The sum of the loss at each dimension: the first `dim` components of every vector."""

    def summed(columns: Sequence[mx.array], targets: Targets) -> mx.array:
        parts = [loss([column[:, :dim] for column in columns], targets) for dim in dims]
        return mx.stack(parts).sum()

    return summed


LOSSES: dict[str, Loss] = {
    "multiple_negatives_ranking": multiple_negatives_ranking,
    "cosent": cosent,
    "cosine_similarity": cosine_similarity,
    "embedding_matching": embedding_matching,
    "similarity_matching": similarity_matching,
}


def build(
    name: str | Loss,
    *,
    size: int,
    scale: float = 20.0,
    hardness: Hardness | None = None,
    strength: float = 5.0,
    spread: float = 0.0,
    nested: bool = True,
) -> Loss:
    """The loss a run asked for.

    Args:
        name: of `LOSSES`, or a loss of the caller's.
        size: length of a whole sentence vector.
        scale: 1 / temperature, where the loss has one.
        hardness: see `multiple_negatives_ranking`.
        strength: see `multiple_negatives_ranking`.
        spread: weight of `spread_out`; 0 leaves it out.
        nested: sum over `size` and the Matryoshka dimensions below it.
    """
    loss = LOSSES[name] if isinstance(name, str) else name
    if name == "multiple_negatives_ranking":
        loss = partial(multiple_negatives_ranking, scale=scale, hardness=hardness, strength=strength)
    elif name == "cosent":
        loss = partial(cosent, scale=scale)

    def spread_too(columns: Sequence[mx.array], targets: Targets) -> mx.array:
        return loss(columns, targets) + spread * spread_out(columns)

    whole = spread_too if spread else loss
    return matryoshka(whole, (size, *(d for d in MATRYOSHKA if d < size))) if nested else whole
