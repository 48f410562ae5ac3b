"""Rows to batches: in what order, what pairs, and which candidates are no negatives."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from .data import Dataset
from .losses import Targets


@dataclass(frozen=True)
class Batch:
    """Distinct texts, and where each stands.

    Attributes:
        texts: each once.
        columns: (columns, B) index of the text in each place: anchors, positives, negatives.
        targets: for the loss.
    """

    texts: Sequence[str]
    columns: np.ndarray
    targets: Targets


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Whole batches of an epoch; the rest of the rows comes in other epochs, each shuffled anew."""
    return max(1, len(dataset.rows) // batch_size)


def batch_at(dataset: Dataset, batch_size: int, seed: int, step: int) -> Batch:
    """The batch of a step: a function of its arguments alone, so that a run resumes exactly."""
    epoch, place = divmod(step, steps_per_epoch(dataset, batch_size))
    chosen = _order(len(dataset.rows), seed, epoch)[place * batch_size : (place + 1) * batch_size]
    return make_batch(dataset, chosen, np.random.default_rng([seed, step, 1]))


@lru_cache(maxsize=1)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def make_batch(dataset: Dataset, chosen: np.ndarray, generator: np.random.Generator) -> Batch:
    """The rows' batch.

    Args:
        dataset: where they stand.
        chosen: (B,) indices of rows.
        generator: draws the partner of each labelled text, of the same label.
    """
    rows = [dataset.rows[i] for i in chosen]
    texts, columns, padding = columns_of(dataset, chosen, generator)
    score, vector = rows[0].score, rows[0].vector
    hidden, teacher = None, None
    if vector is not None:
        vectors = np.array([row.vector for row in rows], np.float32)
        teacher = mx.array(vectors.reshape(len(rows), len(columns), -1))
    if len(columns) > 1 and score is None and vector is None:
        hidden = _hidden(columns, [row.label for row in rows]) | padding[1:].ravel()
    targets = Targets(
        scores=None if score is None else mx.array([row.score for row in rows]),
        hidden=mx.array(hidden) if hidden is not None and hidden.any() else None,
        teacher=teacher,
    )
    return Batch(texts, columns, targets)


def columns_of(
    dataset: Dataset, chosen: np.ndarray, generator: np.random.Generator
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The rows' distinct texts, the (columns, B) places of each, and which places are padding."""
    texts = [list(dataset.rows[i].texts) for i in chosen]
    if dataset.kind == "labelled":
        for i, partner in zip(range(len(chosen)), _partners(dataset, chosen, generator), strict=True):
            texts[i].append(dataset.rows[partner].texts[0])
    place: dict[str, int] = {}
    width = max(map(len, texts))
    columns = np.empty((width, len(chosen)), np.int32)
    padding = np.zeros((width, len(chosen)), bool)
    for i, row in enumerate(texts):
        padding[len(row) :, i] = True
        # A row with fewer negatives repeats its positive, and nobody sees the repetition.
        for j, text in enumerate(row + row[1:2] * (width - len(row))):
            columns[j, i] = place.setdefault(text, len(place))
    return list(place), columns, padding


def _partners(dataset: Dataset, chosen: np.ndarray, generator: np.random.Generator) -> list[int]:
    same: dict[str | None, list[int]] = {}
    for i, row in enumerate(dataset.rows):
        same.setdefault(row.label, []).append(i)
    partners = []
    for i in chosen:
        others = same[dataset.rows[i].label]
        drawn = int(generator.integers(len(others) - 1))
        partners.append(others[drawn] if others[drawn] != i else others[-1])
    return partners


def _hidden(columns: np.ndarray, labels: Sequence[str | None]) -> np.ndarray:
    """(B, C) candidates that are no negatives of a row, its own positive excepted.

    The row's texts again, the positives of rows with the same anchor, and texts of the same label.
    """
    B = columns.shape[1]
    candidates = columns[1:].ravel()
    hidden = (candidates == columns[0][:, None]) | (candidates == columns[1][:, None])
    hidden[:, :B] |= columns[0] == columns[0][:, None]
    if labels[0] is not None:
        names = np.array(labels)
        hidden |= np.tile(names == names[:, None], len(columns) - 1)
    hidden[np.arange(B), np.arange(B)] = False
    return np.asarray(hidden)
