"""Scores a checkpoint in the reference stack on task files that the training never saw.

    python training/evaluate.py CHECKPOINT TASKS

Sentence-transformers loads the folder in float32; vectors are cut, then made unit length.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

DIMENSIONS = (768, 512, 256, 128)
STS = {
    "STSBenchmark dev": "sts/STSBenchmark/validation.default.jsonl",
    "STSBenchmark": "sts/STSBenchmark/test.default.jsonl",
    "STS12": "sts/STS12/test.default.jsonl",
    "STS16": "sts/STS16/test.default.jsonl",
    "BIOSSES": "sts/BIOSSES/test.default.jsonl",
}
XQUAD = "retrieval/XQuADRetrieval/en"
BANKING77 = "classification/Banking77Classification"


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    return vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)


def show(name: str, scores: list[float]) -> None:
    print(name, *(f"{100 * score:.2f}" for score in scores), sep="\t", flush=True)


def main() -> None:
    tasks = Path(sys.argv[2])
    model = SentenceTransformer(sys.argv[1], model_kwargs={"dtype": "float32"}, device="cpu")

    def encode(data: list[dict[str, Any]], column: str, prompt: str) -> np.ndarray:
        return model.encode([row[column] for row in data], prompt_name=prompt)

    print("task", *DIMENSIONS, sep="\t")
    for name, path in STS.items():
        pairs = rows(tasks / path)
        a, b = encode(pairs, "s1", "STS"), encode(pairs, "s2", "STS")
        gold = [row["score"] for row in pairs]
        cosines = [(cut(a, dim) * cut(b, dim)).sum(axis=1) for dim in DIMENSIONS]
        show(name, [float(spearmanr(gold, cosine).statistic) for cosine in cosines])

    corpus, queries = rows(tasks / XQUAD / "corpus.jsonl"), rows(tasks / XQUAD / "queries.jsonl")
    documents, questions = encode(corpus, "text", "document"), encode(queries, "text", "query")
    place = {row["id"]: i for i, row in enumerate(corpus)}
    answer = {row["query"]: place[row["doc"]] for row in rows(tasks / XQUAD / "qrels.jsonl")}
    gold_place = np.array([answer[row["id"]] for row in queries])  # one relevant document a query
    ndcg = []
    for dim in DIMENSIONS:
        similarity = cut(questions, dim) @ cut(documents, dim).T
        rank = (similarity > similarity[np.arange(len(queries)), gold_place][:, None]).sum(axis=1)
        ndcg.append(float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean()))
    show("XQuAD en", ndcg)

    train, test = (rows(tasks / BANKING77 / f"{part}.default.jsonl") for part in ("train", "test"))
    known, asked = encode(train, "text", "Classification"), encode(test, "text", "Classification")
    accuracy = []
    for dim in DIMENSIONS:
        judge = LogisticRegression(max_iter=200).fit(cut(known, dim), [row["label"] for row in train])
        accuracy.append(judge.score(cut(asked, dim), [row["label"] for row in test]))
    show("Banking77", accuracy)


if __name__ == "__main__":
    main()
