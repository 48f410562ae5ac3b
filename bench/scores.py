"""Task scores from vectors, as mteb computes them; one encoding serves every dimension."""

from collections.abc import Sequence

import numpy as np

from mlx_embeddinggemma import EmbeddingGemma

from .tasks import STS, Retrieval


def score(model: EmbeddingGemma, task: STS | Retrieval, dims: Sequence[int]) -> dict[int, float]:
    """The task's main score at each dimension."""
    if isinstance(task, STS):
        a = model.encode(task.first, prompt_name="STS")
        b = model.encode(task.second, prompt_name="STS")
        return {
            dim: spearman((cut(a, dim) * cut(b, dim)).sum(axis=1), np.array(task.gold)) for dim in dims
        }
    queries = model.encode_query(task.queries)
    documents = model.encode_document(task.documents)
    return {
        dim: ndcg_at_10(cut(queries, dim) @ cut(documents, dim).T, np.array(task.relevant))
        for dim in dims
    }


def cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` components, of unit length again."""
    head = vectors[:, :dim]
    return np.asarray(head / np.linalg.norm(head, axis=1, keepdims=True))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = np.cumsum(counts) - (counts - 1) / 2
    return ranks[inverse]


def ndcg_at_10(similarity: np.ndarray, relevant: np.ndarray) -> float:
    """Mean of 1 / log2(1 + rank) over the queries whose one relevant document ranks in the top 10.

    Args:
        similarity: (queries, documents).
        relevant: (queries,) index of each query's document.
    """
    right = similarity[np.arange(len(relevant)), relevant]
    rank = 1 + (similarity > right[:, None]).sum(axis=1)
    return float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean())
