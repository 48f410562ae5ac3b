"""Tasks to score: the bundled ones, whose licences allow it, and those of a folder of task files.

A folder of task files, compressed (`.jsonl.xz`) or not, a JSON object a line:

    sts/NAME/SPLIT.SUBSET.jsonl                 s1, s2, score
    pair/NAME/SPLIT.SUBSET.jsonl                s1, s2, label (1: alike, 0: not)
    bitext/NAME/SUBSET.jsonl                    s1, s2, or a column a language, English as eng_Latn
    classification/NAME/train.SUBSET.jsonl      text, label; and test.SUBSET.jsonl
    clustering/NAME/SPLIT.SUBSET.jsonl          text, label
    retrieval/NAME/SUBSET/corpus.jsonl          id, title, text; queries.jsonl: id, text;
                                                qrels.jsonl: query, doc, score (0: no answer)

Texts are strings, scores numbers, ids and labels strings or whole numbers; a title may be null or left
out. What could only give a score that says nothing is refused: golds that are all alike, one class.
"""

import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mlx_embeddinggemma import given, strict_json
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import shown

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
            raise EmbeddingGemmaError(f"no task {shown(name)}; known tasks: {_listed(known)}")
    return [known[name]() for name in (known if names is None else names)]


def _known(data: str | Path | None) -> dict[str, Callable[[], Task]]:
    local = dict(_find(given.path("data", data))) if data is not None else {}
    if data is not None and not local:
        raise EmbeddingGemmaError(
            f"expected task files in {given.shown(str(data))}, such as sts/NAME/test.default.jsonl; "
            "found none"
        )
    return dict(_find(BUNDLED)) | local


def published(task: str, split: str, subset: str) -> float | None:
    """The score of google/embeddinggemma-300m in mteb's results repository, if it is there."""
    score: float | None = _published_scores().get(task, {}).get(split, {}).get(subset)
    return score


@cache
def _published_scores() -> dict[str, Any]:
    packed = (BUNDLED / "published.json.xz").read_bytes()
    scores: dict[str, Any] = strict_json.loads(lzma.decompress(packed))["scores"]
    return scores


def _listed(names: Iterable[str], most: int = 40) -> str:
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


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
        for subset, keys in _languages(path).items():
            yield _named(path.parent.name, "test", subset, partial(_bitext, keys=keys), path)
    for path in _files(folder / "retrieval", "*/*/corpus.jsonl"):
        split = "validation" if path.parent.parent.name == "XQuADRetrieval" else "test"
        yield _named(path.parent.parent.name, split, path.parent.name, _retrieval, path)


def _files(folder: Path, pattern: str) -> list[Path]:
    found = (*folder.glob(pattern), *folder.glob(f"{pattern}.xz"))
    return sorted(path for path in found if path.is_file())  # no pipe, which nobody may write to


def _languages(path: Path) -> dict[str, tuple[str, str]]:
    """The subsets of a bitext file by its first row, and the two columns of each."""
    number, row = next(_rows(path))
    columns = list(row) if isinstance(row, dict) else []
    if "s1" in columns:
        return {path.name.split(".")[0]: ("s1", "s2")}
    if ENGLISH not in columns or len(columns) < 2:
        raise EmbeddingGemmaError(
            f"{path}, line {number}: expected a JSON object with s1 and s2, or with a column a "
            f"language, English as {ENGLISH}, got {shown(row)}"
        )
    return {f"{ENGLISH}-{code}": (ENGLISH, code) for code in columns if code != ENGLISH}


def _named(
    task: str, split: str, subset: str, reader: Callable[..., Task], path: Path
) -> tuple[str, Callable[[], Task]]:
    name = task if subset == "default" else f"{task}-{subset}"
    return name, partial(reader, (task, split, subset), path)


def _sts(about: tuple[str, str, str], path: Path) -> STS:
    first, second, gold = _columns(path, s1=TEXT, s2=TEXT, score=SCORE)
    _check_differ(path, "scores", gold)
    return STS(*about, first, second, gold)


def _pair(about: tuple[str, str, str], path: Path) -> PairClassification:
    first, second, gold = _columns(path, s1=TEXT, s2=TEXT, label=ALIKE)
    _check_differ(path, "labels", gold)
    return PairClassification(*about, first, second, gold)


def _bitext(about: tuple[str, str, str], path: Path, keys: tuple[str, str]) -> BitextMining:
    first, second = _columns(path, **dict.fromkeys(keys, TEXT))
    if len(first) < 2:
        raise EmbeddingGemmaError(f"{path}: expected two rows or more to choose from, got one")
    return BitextMining(*about, first, second)


def _clustering(about: tuple[str, str, str], path: Path) -> Clustering:
    texts, labels = _columns(path, text=TEXT, label=NAME)
    _check_differ(path, "labels", labels)
    return Clustering(*about, texts, labels)


def _classification(about: tuple[str, str, str], path: Path) -> Classification:
    train_path = path.with_name(path.name.replace("test.", "train.", 1))
    train, train_labels = _columns(train_path, text=TEXT, label=NAME)
    _check_differ(train_path, "labels", train_labels)
    return Classification(*about, train, train_labels, *_columns(path, text=TEXT, label=NAME))


def _retrieval(about: tuple[str, str, str], path: Path) -> Retrieval:
    query_path, qrel_path = (
        path.with_name(path.name.replace("corpus", n)) for n in ("queries", "qrels")
    )
    ids, titles, texts = _columns(path, id=NAME, title=TITLE, text=TEXT)
    query_ids, queries = _columns(query_path, id=NAME, text=TEXT)
    _check_unique(path, ids)
    _check_unique(query_path, query_ids)
    relevant = _relevant(qrel_path, ids, query_ids)
    # A query that nobody judged has no score; mteb leaves it out too.
    kept = [i for i, query in enumerate(query_ids) if relevant[query]]
    return Retrieval(
        *about,
        [queries[i] for i in kept],
        texts,
        titles,
        ids,
        [relevant[query_ids[i]] for i in kept],
    )


def _relevant(path: Path, ids: list[str], queries: list[str]) -> dict[str, dict[int, float]]:
    """Of each query: index of a document -> grade."""
    place = {document: i for i, document in enumerate(ids)}
    relevant: dict[str, dict[int, float]] = {query: {} for query in queries}
    rows = zip(*_columns(path, query=NAME, doc=NAME, score=GRADE), strict=True)
    for i, (query, document, grade) in enumerate(rows):
        if query not in relevant or document not in place:
            raise EmbeddingGemmaError(
                f"{_line(path, i)}: no query {shown(query)} or no document {shown(document)}"
            )
        if relevant[query].setdefault(place[document], grade) != grade:
            raise EmbeddingGemmaError(
                f"{_line(path, i)}: expected one score for query {shown(query)} and document "
                f"{shown(document)}, got two"
            )
    if not any(grade for grades in relevant.values() for grade in grades.values()):
        raise EmbeddingGemmaError(f"{path}: expected a score over 0, got none: no query has an answer")
    return relevant


def _check_differ(path: Path, what: str, golds: Sequence[object]) -> None:
    if len(set(golds)) < 2:
        raise EmbeddingGemmaError(
            f"{path}: expected {what} that differ, all {len(golds)} are {shown(golds[0])}: "
            "any vectors would score the same"
        )


def _check_unique(path: Path, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for i, name in enumerate(ids):
        if name in seen:
            raise EmbeddingGemmaError(
                f"{_line(path, i)}: expected each id once, got {shown(name)} twice"
            )
        seen.add(name)


def _line(path: Path, index: int) -> str:
    """The file and line of a row, counted from 0."""
    number, _ = next(islice(_rows(path), index, None))
    return f"{path}, line {number}"


MISSING = object()  # the value of a column that a row has not


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _title(value: object) -> str:
    return "" if value is None or value is MISSING else _text(value).strip()


def _name(value: object) -> str:
    if not isinstance(value, str | int):
        raise ValueError
    return str(value)


def _score(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError
    return float(value)


def _grade(value: object) -> float:
    if (grade := _score(value)) < 0:
        raise ValueError
    return grade


def _alike(value: object) -> int:
    if value not in (0, 1):
        raise ValueError
    return int(value == 1)


class Kind(NamedTuple):
    """What a column holds, and what reads it: a ValueError is a value of another kind."""

    name: str
    read: Callable[[object], Any]


TEXT, TITLE, NAME = Kind("str", _text), Kind("str or null", _title), Kind("str or whole number", _name)
SCORE, GRADE = Kind("number", _score), Kind("number of 0 or more", _grade)
ALIKE = Kind("1 or 0", _alike)


def _columns(path: Path, **kinds: Kind) -> list[list[Any]]:
    """The columns of a file of JSON lines, each value of its kind."""
    columns: list[list[Any]] = [[] for _ in kinds]
    needed = {key for key, kind in kinds.items() if kind is not TITLE}
    for number, row in _rows(path):
        if not isinstance(row, dict) or not needed <= row.keys():
            wanted = ", ".join(f"{key} ({kind.name})" for key, kind in kinds.items())
            raise EmbeddingGemmaError(
                f"{path}, line {number}: expected a JSON object with {wanted}, got {shown(row)}"
            )
        for column, (key, kind) in zip(columns, kinds.items(), strict=True):
            value = row.get(key, MISSING)
            try:
                column.append(kind.read(value))
            except (ValueError, OverflowError):  # of a whole number of 400 digits
                raise EmbeddingGemmaError(
                    f"{path}, line {number}: expected {key} ({kind.name}), got {shown(value)}"
                ) from None
    return columns


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines, each with the number of its line; blank lines are none."""
    number, empty = 0, True
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if text := line.decode("utf-8-sig").strip():
                    empty = False
                    yield number, strict_json.loads(text)
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror or error}") from None
    except (lzma.LZMAError, EOFError) as error:
        raise EmbeddingGemmaError(f"{path} is damaged: {error}") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise EmbeddingGemmaError(f"{path}, line {number}: expected a JSON object: {error}") from None
    if empty:
        raise EmbeddingGemmaError(f"{path} is empty")
