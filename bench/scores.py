"""Task scores from vectors, as mteb computes them; one encoding serves every dimension.

Most are a few lines of numpy. Classification and clustering are scikit-learn's own, the very calls
mteb makes: a minibatch k-means that is not the same k-means gives other scores.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from mlx_embeddinggemma import EmbeddingGemma
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.unit import unit

from .tasks import (
    STS,
    BitextMining,
    Classification,
    Clustering,
    PairClassification,
    Pairs,
    Retrieval,
    Task,
)

SEED = 42  # mteb's
EXPERIMENTS = 10  # of mteb's classification and clustering
CLUSTERED = 16_384  # texts drawn, with replacement, for each of mteb's clusterings


@dataclass(frozen=True)
class Score:
    """A task's main score, and what it is made of.

    `items` has a value a query (nDCG@10), a sentence (F1), a test text (share of experiments that got
    it right), a pair (its similarity) or a clustering (V-measure). The score is their mean; for pairs
    it is the rank statistic `of_pairs` of them and the gold values.
    """

    value: float
    items: np.ndarray


def score(model: EmbeddingGemma, task: Task, dims: Sequence[int]) -> dict[int, Score]:
    """The task's main score at each dimension.

    Raises:
        EmbeddingGemmaError: the task needs scikit-learn, which is not installed; or it has no score,
            for all similarities are equal.
    """
    at_dim = _scorer(task, model)
    found = {dim: at_dim(dim) for dim in dims}
    for dim, one in found.items():
        if not (math.isfinite(one.value) and np.isfinite(one.items).all()):
            raise EmbeddingGemmaError(
                f"{task.name} has no {task.metric} at {dim} dimensions: all its similarities are equal"
            )
    return found


def cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` components, of unit length again."""
    return unit(vectors[:, :dim], f"vectors cut to {dim} dimensions")


def of_pairs(metric: str, similarity: np.ndarray, gold: np.ndarray) -> float:
    """The statistic called `metric`, "Spearman" or "AP", of pairs."""
    return {"Spearman": spearman, "AP": average_precision}[metric](similarity, gold)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank; NaN where one of the two is all ties."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = np.cumsum(counts) - (counts - 1) / 2
    return ranks[inverse]


def average_precision(similarity: np.ndarray, labels: np.ndarray) -> float:
    """Mean precision at the ranks of the positives; pairs of one similarity share a threshold.

    NaN without positives.
    """
    order = np.argsort(-similarity, kind="stable")
    found = np.cumsum(labels[order])
    last = np.append(np.flatnonzero(np.diff(similarity[order])), len(order) - 1)
    with np.errstate(invalid="ignore"):
        precision, recall = found[last] / (last + 1), found[last] / found[-1]
    return float((np.diff(recall, prepend=0) * precision).sum())


def ndcg_at_10(
    similarity: np.ndarray, relevant: Sequence[dict[int, float]], ids: Sequence[str]
) -> np.ndarray:
    """Each query's gain in the top 10, discounted by log2(1 + rank), over the best it could be.

    A query whose documents are all graded 0 has a value of 0, as in trec_eval.

    Args:
        similarity: (queries, documents).
        relevant: of each query, the grades of the documents that answer it.
        ids: of the documents; among ties the larger comes first, as in trec_eval.

    Returns:
        (queries,)

    Raises:
        ValueError: a similarity is NaN; it would rank anywhere.
    """
    if np.isnan(similarity).any():
        raise ValueError("expected finite similarities, got NaN")
    falling = np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True))
    top = falling[np.argsort(-similarity[:, falling], axis=1, kind="stable")[:, :10]]
    discount = 1 / np.log2(np.arange(2, 12))
    values = []
    for documents, grades in zip(top, relevant, strict=True):
        gains = np.array([grades.get(int(document), 0.0) for document in documents])
        best = np.sort(list(grades.values()))[::-1][:10]
        most = best @ discount[: len(best)]
        values.append((gains @ discount[: len(gains)]) / most if most > 0 else 0.0)
    return np.array(values)


def bitext_f1(similarity: np.ndarray) -> np.ndarray:
    """F1 of each sentence's nearest translation, (n, n) to (n,): their mean is the weighted F1."""
    nearest = similarity.argmax(axis=1)
    claimed = np.bincount(nearest, minlength=len(nearest))
    return np.asarray(2 * (nearest == np.arange(len(nearest))) / (claimed + 1))


def undersample(labels: Sequence[str], per_label: int) -> list[list[int]]:
    """Indices of `per_label` texts of each class, for each of mteb's experiments.

    mteb shuffles one list of indices again and again, each time with the same seed.
    """
    indices = list(range(len(labels)))
    chosen = []
    for _ in range(EXPERIMENTS):
        np.random.RandomState(SEED).shuffle(indices)
        counts = dict.fromkeys(labels, 0)
        picked = []
        for i in indices:
            if counts[labels[i]] < per_label:
                counts[labels[i]] += 1
                picked.append(i)
        chosen.append(picked)
    return chosen


def accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    experiments: Sequence[Sequence[int]],
) -> np.ndarray:
    """In what share of the experiments a logistic regression gets each test text right, (n,)."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    right = []
    with threadpool_limits(1):
        for rows in experiments:
            model = LogisticRegression(max_iter=100, random_state=SEED)
            right.append(model.fit(train[rows], train_labels[rows]).predict(test) == test_labels)
    return np.asarray(np.mean(right, axis=0))


def v_measures(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """V-measure of each of mteb's clusterings, (10,)."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score
    from threadpoolctl import threadpool_limits

    if len(vectors) < vectors.shape[1]:
        # Turned into the space that they span: the same distances, in fewer dimensions.
        vectors = np.ascontiguousarray(vectors @ np.linalg.svd(vectors, full_matrices=False)[2].T)
    draw = random.Random(SEED)
    # mteb first draws the texts to encode; of so few it draws all, in another order.
    order = draw.sample(range(len(vectors)), k=len(vectors))
    vectors, labels = vectors[order], labels[order]
    model = MiniBatchKMeans(
        n_clusters=len(np.unique(labels)), batch_size=512, n_init=1, random_state=SEED
    )
    values = []
    # Its threads wait for each other spinning: on a busy machine two took 20 times as long as one.
    with threadpool_limits(1):
        for _ in range(EXPERIMENTS):
            drawn = draw.choices(range(len(vectors)), k=CLUSTERED)
            values.append(v_measure_score(labels[drawn], model.fit_predict(vectors[drawn])))
    return np.array(values)


@singledispatch
def _scorer(task: Task, model: EmbeddingGemma) -> Callable[[int], Score]:
    """Encodes the task once, and returns what scores it at a dimension."""
    raise NotImplementedError(type(task).__name__)


@_scorer.register
def _(task: STS, model: EmbeddingGemma) -> Callable[[int], Score]:
    a, b = _both(task, model)
    gold = np.array(task.gold)

    def at_dim(dim: int) -> Score:
        similarity = (cut(a, dim) * cut(b, dim)).sum(axis=1)
        return Score(spearman(similarity, gold), similarity)

    return at_dim


@_scorer.register
def _(task: PairClassification, model: EmbeddingGemma) -> Callable[[int], Score]:
    a, b = _both(task, model)
    labels = np.array(task.gold)

    def at_dim(dim: int) -> Score:
        x, y = cut(a, dim), cut(b, dim)
        # mteb takes the best of several similarities; of unit vectors these two rank differently.
        both = ((x * y).sum(axis=1), -np.abs(x - y).sum(axis=1))
        return max((Score(average_precision(s, labels), s) for s in both), key=lambda s: s.value)

    return at_dim


@_scorer.register
def _(task: Retrieval, model: EmbeddingGemma) -> Callable[[int], Score]:
    queries = model.encode_query(task.queries)
    documents = model.encode_document(task.documents, titles=task.titles)

    def at_dim(dim: int) -> Score:
        similarity = cut(queries, dim) @ cut(documents, dim).T
        return _mean(ndcg_at_10(similarity, task.relevant, task.document_ids))

    return at_dim


@_scorer.register
def _(task: BitextMining, model: EmbeddingGemma) -> Callable[[int], Score]:
    a, b = _both(task, model)
    return lambda dim: _mean(bitext_f1(cut(a, dim) @ cut(b, dim).T))


@_scorer.register
def _(task: Classification, model: EmbeddingGemma) -> Callable[[int], Score]:
    _need_sklearn(task)
    experiments = undersample(task.train_labels, task.samples_per_label)
    used = sorted(set().union(*experiments))
    place = {row: i for i, row in enumerate(used)}
    train = model.encode([task.train[row] for row in used], prompt_name="Classification")
    test = model.encode(task.test, prompt_name="Classification")
    labels, test_labels = np.array(task.train_labels)[used], np.array(task.test_labels)
    placed = [[place[row] for row in rows] for rows in experiments]
    return lambda dim: _mean(accuracy(cut(train, dim), labels, cut(test, dim), test_labels, placed))


@_scorer.register
def _(task: Clustering, model: EmbeddingGemma) -> Callable[[int], Score]:
    _need_sklearn(task)
    vectors, labels = model.encode(task.texts, prompt_name="Clustering"), np.array(task.labels)
    return lambda dim: _mean(v_measures(cut(vectors, dim), labels))


def _both(task: Pairs, model: EmbeddingGemma) -> Iterator[np.ndarray]:
    """Vectors of the first sentences, then of the second; the prompts are called as the types are."""
    return (model.encode(texts, prompt_name=task.type) for texts in (task.first, task.second))


def _mean(items: np.ndarray) -> Score:
    return Score(float(items.mean()), items)


def _need_sklearn(task: Task) -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise EmbeddingGemmaError(
            f'{task.name} needs scikit-learn: pip install "mlx-embeddinggemma[bench]"'
        ) from None
