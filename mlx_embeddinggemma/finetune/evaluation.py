"""How good the network is on held-out rows, while it learns."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.model import Model

from .batches import Batch, make_batch
from .data import Dataset
from .gradients import Ids, embed
from .losses import Loss

CHUNK = 256  # texts embedded at a time


def evaluate(
    model: Model, dataset: Dataset, loss: Loss, batch_size: int, tokenize: Callable[[Batch], Ids]
) -> dict[str, float]:
    """The loss over the rows, and what the kind of data is judged by.

    Pairs by `accuracy` (the positive is the best of all passages) and `mrr@10`, scored pairs by
    `spearman`, labelled texts by `accuracy` (the nearest other text has the same label), each at the
    whole vector's size.
    """
    generator = np.random.default_rng(0)
    everything = np.arange(len(dataset.rows))
    whole = make_batch(dataset, everything, generator)
    ids = tokenize(whole)
    vectors = np.concatenate(
        [np.array(embed(model, ids[i : i + CHUNK])) for i in range(0, len(ids), CHUNK)]
    )
    losses = []
    for start in range(0, len(everything), batch_size):
        batch = make_batch(dataset, everything[start : start + batch_size], generator)
        place = {text: i for i, text in enumerate(whole.texts)}
        rows = mx.array(vectors[[place[text] for text in batch.texts]])
        losses.append(loss([rows[mx.array(c)] for c in batch.columns], batch.targets).item())
    result = {"loss": float(np.mean(losses))}
    first = vectors[whole.columns[0]]
    if dataset.kind == "pairs":
        similarity = first @ vectors[np.unique(whole.columns[1:])].T
        right = (first * vectors[whole.columns[1]]).sum(axis=1)[:, None]
        # Another passage counts where it is better by more than float32's rounding.
        rank = 1 + (similarity > right + 1e-6).sum(axis=1)
        result["accuracy"] = float((rank == 1).mean())
        result["mrr@10"] = float(np.where(rank <= 10, 1 / rank, 0).mean())
    elif dataset.kind == "scored":
        cosine = (first * vectors[whole.columns[1]]).sum(axis=1)
        result["spearman"] = _spearman(cosine, np.array([row.score for row in dataset.rows]))
    elif dataset.kind == "labelled":
        labels = np.array([row.label for row in dataset.rows])
        similarity = first @ first.T
        np.fill_diagonal(similarity, -np.inf)
        result["accuracy"] = float((labels[similarity.argmax(axis=1)] == labels).mean())
    return result


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank."""
    ranks = []
    for values in (x, y):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
