"""The pairs of all rounds so far, as the student reads them: prompts, cases, long texts."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlx_embeddinggemma.finetune.data import Dataset, Row
from mlx_embeddinggemma.prompts import PUBLISHED

PROMPTED = 0.6  # share of the pairs whose texts follow prompts
LONG = 500  # pairs of texts joined from several


class Pairs:
    """Texts, the teacher's vectors and the pairs of some rounds' folders, of which there may be none."""

    def __init__(self, folders: Sequence[Path]):
        self.texts: list[str] = [
            text for folder in folders for text in json.loads((folder / "texts.json").read_text())
        ]
        self.vectors = np.concatenate(
            [np.empty((0, 384), np.float16), *(np.load(folder / "vectors.npy") for folder in folders)]
        )
        self.pairs = np.concatenate(
            [np.empty((0, 2), int), *(np.load(folder / "pairs.npy") for folder in folders)]
        )

    def draw(self, generator: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
        """Chance pairs, plain and side by side, and the teacher's vectors (count, 2, 384)."""
        chosen = self.pairs[generator.integers(len(self.pairs), size=count)]
        return [self.texts[i] for i in chosen.ravel()], self.vectors[chosen]

    def dataset(self, seed: int) -> Dataset:
        """All of them once, and some long ones, for `finetune`."""
        rng = random.Random(seed)
        prompts = sorted(set(PUBLISHED.values()))

        def dressed(text: str, prompted: bool) -> str:
            draw = rng.random()  # the teacher reads lower case and does not see these
            text = text.lower() if draw < 0.08 else text.title() if draw < 0.14 else text
            return rng.choice(prompts) + text if prompted else text

        rows = []
        for pair in self.pairs:
            prompted = rng.random() < PROMPTED
            read = tuple(dressed(self.texts[i], prompted) for i in pair)
            rows.append(Row(read, vector=self.vectors[pair]))
        long = [i for i, text in enumerate(self.texts) if len(text) > 200]
        for _ in range(LONG):
            joined = [rng.sample(long, rng.randint(2, 12)) for _ in range(2)]
            lengths = [np.array([[len(self.texts[i])] for i in part]) for part in joined]
            means = [
                (n * self.vectors[part].astype(np.float32)).sum(axis=0) / n.sum()
                for n, part in zip(lengths, joined, strict=True)
            ]
            read = tuple(" ".join(self.texts[i] for i in part) for part in joined)
            rows.append(Row(read, vector=np.array(means)))
        return Dataset("vectors", rows)
