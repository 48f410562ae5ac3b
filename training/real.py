"""Sentences that people wrote, and headlines that papers printed: each beside one of like meaning."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

BLOCK = 8192  # texts among which partners are looked for
NEAREST = 24  # from among which a text's partner comes


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


def partners(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the texts in pairs, side by side: each with one that the teacher finds near.

    Args:
        vectors: (n, D) the teacher's, of unit length.
        seed: of the order; another gives other pairs.
    """
    generator = np.random.default_rng(seed)
    order, pairs = generator.permutation(len(vectors)), []
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        unit = vectors[block].astype(np.float32)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -2)
        count = min(NEAREST, len(block) - 1)
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        order_of = np.argsort(-np.take_along_axis(similarity, nearest, axis=1), axis=1)
        nearest = np.take_along_axis(nearest, order_of, axis=1)
        free = np.ones(len(block), bool)
        for i, candidates in enumerate(nearest):
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
