"""The model as it starts as the teacher of what it becomes: for texts that nobody labelled.

A network that learns to live with rounded weights should go on saying what it said in floats.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from mlx_embeddinggemma.model import Model
from mlx_embeddinggemma.unit import check_unit

from .data import Dataset
from .gradients import Ids, embed

CHUNK = 256  # texts embedded at a time


def with_vectors(
    teacher: Model, dataset: Dataset, tokenize: Callable[[Sequence[str]], Ids], progress: bool
) -> Dataset:
    """The rows of texts alone, each with the vector that `teacher` gives it.

    Args:
        teacher: in floats.
        dataset: of the kind "texts".
        tokenize: texts to their tokens.
        progress: a bar on stderr.
    """
    rows = []
    starts = range(0, len(dataset.rows), CHUNK)
    for start in tqdm(starts, desc="teacher", delay=1, disable=None if progress else True):
        part = dataset.rows[start : start + CHUNK]
        vectors = np.array(embed(teacher, tokenize([row.texts[0] for row in part])))
        check_unit(vectors, "the teacher's vectors")
        rows += [replace(row, vector=vector) for row, vector in zip(part, vectors, strict=True)]
    return replace(dataset, rows=rows)
