"""Sentences that people wrote, and headlines that papers printed; and how a text finds its partner."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

FIRST = 24  # from among which a text's partner comes


def key(text: str) -> str:
    """What two spellings of one text have in common."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def tatoeba(path: Path) -> Iterator[str]:
    """English sentences of a file of Tatoeba's: "id, eng, sentence" or "sentence, translation"."""
    for line in path.read_text("utf-8").splitlines():
        columns = line.split("\t")
        text = columns[2] if columns[0].isdigit() else columns[0]
        if 8 < len(text) < 200:
            yield text


def abc_news(path: Path) -> Iterator[str]:
    """Headlines of the file "A Million News Headlines": "date,headline"."""
    for line in path.read_text("utf-8").splitlines()[1:]:
        text = line.partition(",")[2].strip()
        if 12 < len(text) < 200:
            yield text


def unseen(texts: Iterable[str], held_out: set[str]) -> list[str]:
    """The texts, each once, in order, without those whose `key` is held out."""
    found = {key(text): text for text in sorted(texts, reverse=True)}
    return sorted(text for k, text in found.items() if k not in held_out)


def near(vectors: np.ndarray, seed: int) -> np.ndarray:
    """`partners` that the teacher finds near.

    Args:
        vectors: (n, D) the teacher's, of unit length.
        seed: of the order; another gives other pairs.
    """
    return partners(lambda block: cosines(vectors[block]), len(vectors), 8192, seed)


def misjudged(student: np.ndarray, teacher: np.ndarray, seed: int) -> np.ndarray:
    """`partners` whose cosine the student gets wrong: (n, D) and (n, E) of unit length.

    The worst of a thousand, not of all: the worst of all are the teacher's own oddities.
    """
    return partners(
        lambda block: np.abs(cosines(student[block]) - cosines(teacher[block])),
        len(teacher),
        1024,
        seed,
    )


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float32)
    return unit @ unit.T


def partners(
    score: Callable[[np.ndarray], np.ndarray], count: int, block_size: int, seed: int
) -> np.ndarray:
    """Rows of `count` texts in pairs, side by side: each with one of a high score.

    Args:
        score: rows (b,) to (b, b), of each with each.
        count: texts.
        block_size: of those among which partners are looked for.
        seed: of the order.
    """
    generator = np.random.default_rng(seed)
    order, pairs = generator.permutation(count), []
    for start in range(0, len(order), block_size):
        block = order[start : start + block_size]
        scores = score(block)
        np.fill_diagonal(scores, -2)
        width = min(FIRST, len(block) - 1)
        first = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        order_of = np.argsort(-np.take_along_axis(scores, first, axis=1), axis=1)
        first = np.take_along_axis(first, order_of, axis=1)
        free = np.ones(len(block), bool)
        for i, candidates in enumerate(first):
            if not free[i]:
                continue
            free[i] = False
            left = candidates[free[candidates]]
            left = left if len(left) else np.flatnonzero(free)
            if len(left):
                chosen = left[min(len(left) - 1, int(generator.integers(6)))]
                free[chosen] = False
                pairs += [block[i], block[chosen]]
    return np.array(pairs)
