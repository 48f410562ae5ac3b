"""Scores a checkpoint on task files the training never saw.

python training/evaluate.py CHECKPOINT TASKS
"""

import json
import sys
from pathlib import Path

import numpy as np

from mlx_embeddinggemma import EmbeddingGemma

STS = {
    "STSBenchmark dev": "sts/STSBenchmark/validation.default.jsonl",
    "STSBenchmark": "sts/STSBenchmark/test.default.jsonl",
    "STS12": "sts/STS12/test.default.jsonl",
    "STS16": "sts/STS16/test.default.jsonl",
    "BIOSSES": "sts/BIOSSES/test.default.jsonl",
}
RETRIEVAL = {"XQuAD en": "retrieval/XQuADRetrieval/en"}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    return vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)


def main() -> None:
    model, tasks = EmbeddingGemma(sys.argv[1]), Path(sys.argv[2])
    print("task", *model.dimensions, sep="\t")
    for name, path in STS.items():
        pairs = rows(tasks / path)
        a = model.encode([row["s1"] for row in pairs], prompt_name="STS")
        b = model.encode([row["s2"] for row in pairs], prompt_name="STS")
        gold = ranks(np.array([row["score"] for row in pairs]))
        scores = [
            np.corrcoef(gold, ranks((cut(a, d) * cut(b, d)).sum(1)))[0, 1] for d in model.dimensions
        ]
        print(name, *(f"{score:.4f}" for score in scores), sep="\t", flush=True)
    for name, path in RETRIEVAL.items():
        corpus, queries = rows(tasks / path / "corpus.jsonl"), rows(tasks / path / "queries.jsonl")
        relevant = {row["query"]: row["doc"] for row in rows(tasks / path / "qrels.jsonl")}
        documents = model.encode_document([row["text"] for row in corpus])
        vectors = model.encode_query([row["text"] for row in queries])
        place = {row["id"]: i for i, row in enumerate(corpus)}
        gold = np.array([place[relevant[row["id"]]] for row in queries])
        scores = []
        for dim in model.dimensions:
            similarity = cut(vectors, dim) @ cut(documents, dim).T
            right = similarity[np.arange(len(gold)), gold][:, None]
            rank = (similarity > right).sum(axis=1)  # one relevant document a query
            scores.append(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())
        print(name, *(f"{score:.4f}" for score in scores), sep="\t", flush=True)


if __name__ == "__main__":
    main()
