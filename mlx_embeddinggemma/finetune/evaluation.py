"""How good the network is on held-out rows, while it learns."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.model import Model
from mlx_embeddinggemma.unit import check_unit

from .batches import columns_of, make_batch
from .data import Dataset
from .gradients import Ids, embed
from .losses import Loss

CHUNK = 256  # texts embedded, and compared with all others, at a time


def evaluate(
    model: Model,
    dataset: Dataset,
    loss: Loss,
    batch_size: int,
    tokenize: Callable[[Sequence[str]], Ids],
) -> dict[str, float]:
    """The loss over the rows, and what the kind of data is judged by.

    Pairs by `accuracy` (the positive is the best of all passages) and `mrr@10`, scored pairs by
    `spearman`, labelled texts by `accuracy` (the nearest other text has the same label), each at the
    whole vector's size.

    Raises:
        EmbeddingGemmaError: a vector is NaN, infinite or zero, or pairs have no rank correlation.
    """
    everything = np.arange(len(dataset.rows))
    generator = np.random.default_rng(0)
    texts, columns, _ = columns_of(dataset, everything, generator)
    ids = tokenize(texts)
    parts = [np.array(embed(model, ids[i : i + CHUNK])) for i in range(0, len(ids), CHUNK)]
    vectors, place = np.concatenate(parts), {text: i for i, text in enumerate(texts)}
    check_unit(vectors, "vectors of held-out rows")
    losses = []
    for start in range(0, len(everything), batch_size):
        batch = make_batch(dataset, everything[start : start + batch_size], generator)
        rows = mx.array(vectors[[place[text] for text in batch.texts]])
        losses.append(loss([rows[mx.array(c)] for c in batch.columns], batch.targets).item())
    result = {"loss": float(np.mean(losses))}
    if dataset.kind == "pairs":
        rank = _ranks(vectors, columns)
        result["accuracy"] = float((rank == 1).mean())
        result["mrr@10"] = float(np.where(rank <= 10, 1 / rank, 0).mean())
    elif dataset.kind == "scored":
        cosine = (vectors[columns[0]] * vectors[columns[1]]).sum(axis=1)
        result["spearman"] = _spearman(cosine, np.array([row.score for row in dataset.rows]))
    elif dataset.kind == "labelled":
        labels = np.array([row.label for row in dataset.rows])
        result["accuracy"] = _same_label(vectors[columns[0]], labels)
    return result


def _ranks(vectors: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n,) rank of each anchor's positive among all passages."""
    passages = vectors[np.unique(columns[1:])].T
    ranks = []
    for start in range(0, columns.shape[1], CHUNK):
        anchors, positives = (vectors[column[start : start + CHUNK]] for column in columns[:2])
        right = (anchors * positives).sum(axis=1, keepdims=True)
        # Another passage counts where it is better by more than float32's rounding.
        ranks.append(1 + (anchors @ passages > right + 1e-6).sum(axis=1))
    return np.concatenate(ranks)


def _same_label(vectors: np.ndarray, labels: np.ndarray) -> float:
    """How often the nearest other text has the same label."""
    right = 0
    for start in range(0, len(vectors), CHUNK):
        similarity = vectors[start : start + CHUNK] @ vectors.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        right += (labels[similarity.argmax(axis=1)] == labels[start : start + CHUNK]).sum()
    return float(right / len(vectors))


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank."""
    ranks = []
    for values, whose in ((x, "cosines"), (y, "scores")):
        if len(np.unique(values)) < 2:
            raise EmbeddingGemmaError(
                f"expected held-out rows whose {whose} differ, to rank them by; all {len(values)} are "
                f"{values[0]:g}"
            )
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
