"""Tasks to score: the bundled ones, whose licences allow it, and those of a folder of task files.

A folder of task files, compressed (`.jsonl.xz`) or not, a JSON object a line:

    sts/NAME/SPLIT.SUBSET.jsonl                 s1, s2, score
    pair/NAME/SPLIT.SUBSET.jsonl                s1, s2, label (1: alike)
    bitext/NAME/SUBSET.jsonl                    s1, s2, or a column a language, English as eng_Latn
    classification/NAME/train.SUBSET.jsonl      text, label; and test.SUBSET.jsonl
    clustering/NAME/SPLIT.SUBSET.jsonl          text, label
    retrieval/NAME/SUBSET/corpus.jsonl          id, title, text; queries.jsonl: id, text;
                                                qrels.jsonl: query, doc, score
"""

import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from mlx_embeddinggemma.errors import EmbeddingGemmaError

BUNDLED = Path(__file__).parent / "bundled"
ENGLISH = "eng_Latn"
# Training texts of a class; mteb's default is 8.
SAMPLES_PER_LABEL = {"AmazonCounterfactualClassification": 32}
# Bundled or local files that hold less than mteb's task does: their scores are not the published ones.
PARTIAL = {
    "STSBenchmark-captions": "375 of the 1,379 pairs of STSBenchmark",
    "SIB200ClusteringS2S": "204 of the 1,004 texts of mteb's task",
    "JSTS": "version 1.3 of the data, mteb uses 1.1",
}


@dataclass(frozen=True)
class Task:
    """What all tasks have: mteb's name of it, which split and which subset."""

    type: ClassVar[str]
    metric: ClassVar[str]
    task: str
    split: str
    subset: str

    @property
    def name(self) -> str:
        """How people ask for it: "XQuADRetrieval-en"."""
        return self.task if self.subset == "default" else f"{self.task}-{self.subset}"

    @property
    def characters(self) -> int:
        """How much there is to encode."""
        texts = (value for value in vars(self).values() if isinstance(value, list))
        return sum(len(text) for column in texts for text in column if isinstance(text, str))

    @property
    def note(self) -> str:
        """In what it differs from mteb's task of the same name, if it does."""
        return PARTIAL.get(self.task, "")


@dataclass(frozen=True)
class Pairs(Task):
    """What tasks on pairs of sentences have."""

    first: list[str]
    second: list[str]


@dataclass(frozen=True)
class STS(Pairs):
    """Pairs of sentences and how alike people found them."""

    type, metric = "STS", "Spearman"
    gold: list[float]


@dataclass(frozen=True)
class PairClassification(Pairs):
    """Pairs of sentences that do (1) or do not (0) belong together."""

    type, metric = "PairClassification", "AP"
    gold: list[int]


@dataclass(frozen=True)
class BitextMining(Pairs):
    """Sentences and their translations, in the same order."""

    type, metric = "BitextMining", "F1"


@dataclass(frozen=True)
class Classification(Task):
    """Texts and their classes, to train on and to test on."""

    type, metric = "Classification", "accuracy"
    train: list[str]
    train_labels: list[str]
    test: list[str]
    test_labels: list[str]

    @property
    def samples_per_label(self) -> int:
        """Training texts of a class in each experiment."""
        return SAMPLES_PER_LABEL.get(self.task, 8)


@dataclass(frozen=True)
class Clustering(Task):
    """Texts and the groups they should fall into."""

    type, metric = "Clustering", "V-measure"
    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Retrieval(Task):
    """Queries, each with the documents that answer it and how well they do."""

    type, metric = "Retrieval", "nDCG@10"
    queries: list[str]
    documents: list[str]
    titles: list[str]
    document_ids: list[str]  # mteb breaks ties by them
    relevant: list[dict[int, float]]  # of each query: index of a document -> grade


def known_names(data: str | Path | None = None) -> list[str]:
    """Names of the bundled tasks and of those in a folder.

    Raises:
        EmbeddingGemmaError: a folder without task files.
    """
    return list(_known(data))


def load(names: Sequence[str] | None = None, data: str | Path | None = None) -> list[Task]:
    """The tasks by name, by default the bundled ones and those of `data`.

    Args:
        names: which ones.
        data: folder with more task files.

    Raises:
        EmbeddingGemmaError: an unknown name, a folder without task files, or a damaged file.
    """
    known = _known(data)
    for name in names or ():
        if name not in known:
            raise EmbeddingGemmaError(f"no task {name!r}; known tasks: {', '.join(known)}")
    return [known[name]() for name in (known if names is None else names)]


def _known(data: str | Path | None) -> dict[str, Callable[[], Task]]:
    local = dict(_find(Path(data))) if data is not None else {}
    if data is not None and not local:
        raise EmbeddingGemmaError(
            f"expected task files in {data}, such as sts/NAME/test.default.jsonl; found none"
        )
    return dict(_find(BUNDLED)) | local


def published(task: str, split: str, subset: str) -> float | None:
    """The score of google/embeddinggemma-300m in mteb's results repository, if it is there."""
    score: float | None = _published_scores().get(task, {}).get(split, {}).get(subset)
    return score


@cache
def _published_scores() -> dict[str, Any]:
    packed = (BUNDLED / "published.json.xz").read_bytes()
    scores: dict[str, Any] = json.loads(lzma.decompress(packed))["scores"]
    return scores


def _find(folder: Path) -> Iterator[tuple[str, Callable[[], Task]]]:
    """Names of the tasks in a folder, and what loads them."""
    for kind, reader in (("sts", _sts), ("pair", _pair), ("clustering", _clustering)):
        # Of several splits of a name the last counts: the test split's.
        files = _files(folder / kind, "*/*.*.jsonl")
        for path in sorted(files, key=lambda path: path.name.startswith("test.")):
            split, subset = path.name.split(".")[:2]
            yield _named(path.parent.name, split, subset, reader, path)
    for path in _files(folder / "classification", "*/test.*.jsonl"):
        yield _named(path.parent.name, "test", path.name.split(".")[1], _classification, path)
    for path in _files(folder / "bitext", "*/*.jsonl"):
        columns = list(_rows(path, 1)[0])
        pairs = {path.name.split(".")[0]: ("s1", "s2")}
        if "s1" not in columns:
            pairs = {f"{ENGLISH}-{code}": (ENGLISH, code) for code in columns if code != ENGLISH}
        for subset, keys in pairs.items():
            yield _named(path.parent.name, "test", subset, partial(_bitext, keys=keys), path)
    for path in _files(folder / "retrieval", "*/*/corpus.jsonl"):
        split = "validation" if path.parent.parent.name == "XQuADRetrieval" else "test"
        yield _named(path.parent.parent.name, split, path.parent.name, _retrieval, path)


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.xz")])


def _named(
    task: str, split: str, subset: str, reader: Callable[..., Task], path: Path
) -> tuple[str, Callable[[], Task]]:
    name = task if subset == "default" else f"{task}-{subset}"
    return name, partial(reader, (task, split, subset), path)


def _sts(about: tuple[str, str, str], path: Path) -> STS:
    return STS(*about, *_columns(path, s1=str, s2=str, score=float))


def _pair(about: tuple[str, str, str], path: Path) -> PairClassification:
    return PairClassification(*about, *_columns(path, s1=str, s2=str, label=int))


def _bitext(about: tuple[str, str, str], path: Path, keys: tuple[str, str]) -> BitextMining:
    return BitextMining(*about, *_columns(path, **dict.fromkeys(keys, str)))


def _clustering(about: tuple[str, str, str], path: Path) -> Clustering:
    return Clustering(*about, *_columns(path, text=str, label=str))


def _classification(about: tuple[str, str, str], path: Path) -> Classification:
    train = path.with_name(path.name.replace("test.", "train.", 1))
    return Classification(
        *about, *_columns(train, text=str, label=str), *_columns(path, text=str, label=str)
    )


def _retrieval(about: tuple[str, str, str], path: Path) -> Retrieval:
    ids, titles, texts = _columns(path, id=str, title=str, text=str)
    query_path, qrel_path = (
        path.with_name(path.name.replace("corpus", n)) for n in ("queries", "qrels")
    )
    query_ids, queries = _columns(query_path, id=str, text=str)
    place = {document: i for i, document in enumerate(ids)}
    relevant: dict[str, dict[int, float]] = {query: {} for query in query_ids}
    for query, document, grade in zip(
        *_columns(qrel_path, query=str, doc=str, score=float), strict=True
    ):
        if query not in relevant or document not in place:
            raise EmbeddingGemmaError(f"{qrel_path}: no query {query!r} or no document {document!r}")
        relevant[query][place[document]] = grade
    # A query that nothing answers has no score; mteb leaves it out too.
    kept = [i for i, query in enumerate(query_ids) if relevant[query]]
    return Retrieval(
        *about,
        [queries[i] for i in kept],
        texts,
        titles,
        ids,
        [relevant[query_ids[i]] for i in kept],
    )


def _columns(path: Path, **types: type) -> list[list[Any]]:
    """The columns of a file of JSON lines, converted to their types."""
    columns: list[list[Any]] = [[] for _ in types]
    for number, row in enumerate(_rows(path), 1):
        for column, (key, convert) in zip(columns, types.items(), strict=True):
            try:
                column.append(convert(row[key]))
            except (KeyError, TypeError, ValueError):
                wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in types.items())
                raise EmbeddingGemmaError(
                    f"{path}, line {number}: expected a JSON object with {wanted}, got {str(row)[:80]}"
                ) from None
    return columns


def _rows(path: Path, limit: int | None = None) -> list[Any]:
    rows = []
    number = 0
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            for line in islice(file, limit):
                number += 1
                rows.append(json.loads(line))
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror or error}") from None
    except (lzma.LZMAError, EOFError) as error:
        raise EmbeddingGemmaError(f"{path} is damaged: {error}") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise EmbeddingGemmaError(f"{path}, line {number}: expected a JSON object: {error}") from None
    if not rows:
        raise EmbeddingGemmaError(f"{path} is empty")
    return rows
