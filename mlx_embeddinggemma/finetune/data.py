"""Training files to rows of prompted texts, every row checked before training starts.

A table (see `rows`), a row each. Five kinds, told apart by their columns:

    pairs    anchor, positive; perhaps negative, negative_1, negative_2, ... or a list negatives;
             perhaps title, of the positive
    scored   sentence1, sentence2, score
    labelled text, label
    vectors  text, vector: the teacher's, a list of numbers
    texts    text: the model as it starts is the teacher

`KINDS` lists the other names that these columns have. Any row may name its `task`, which decides the
prompts.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.prompts import prompt_for, with_title
from mlx_embeddinggemma.rows import Row as TableRow
from mlx_embeddinggemma.rows import quoted, read_rows
from mlx_embeddinggemma.text_files import shown

# Each kind's columns, and what others call them: the data sets of sentence-transformers (anchor and
# positive, query or question and answer, sentence1 and sentence2; to its collators label, labels, score
# and scores are one thing, and its `fit` writes sentence_0 and sentence_1), FlagEmbedding (query, pos,
# neg), SQuAD (question, context), MS MARCO (query, passage), GLUE's SST-2 (sentence, label).
TEXT = ("text", "sentence")
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "pairs": {
        "anchor": ("anchor", "query", "question"),
        "positive": ("positive", "pos", "answer", "passage", "document", "context"),
    },
    "scored": {
        "sentence1": ("sentence1", "sentence_0"),
        "sentence2": ("sentence2", "sentence_1"),
        "score": ("score", "scores", "similarity_score", "label", "labels"),
    },
    "labelled": {"text": TEXT, "label": ("label", "labels")},
    "vectors": {"text": TEXT, "vector": ("vector", "embedding")},
    "texts": {"text": TEXT},
}
NEGATIVE = re.compile(r"neg|negatives?|negative_\w+")
ALIASES = {name for columns in KINDS.values() for names in columns.values() for name in names}
# Names of the prompts of a pair's two sides; None is no prompt.
TASKS: dict[str, tuple[str | None, str | None]] = {
    "retrieval": ("query", "document"),
    "question answering": ("QuestionAnswering", "document"),
    "fact checking": ("FactChecking", "document"),
    "code retrieval": ("InstructionRetrieval", "document"),
    "similarity": ("STS", "STS"),
    "classification": ("Classification", "Classification"),
    "clustering": ("Clustering", "Clustering"),
    "none": (None, None),
}
DEFAULT_TASK = {
    "pairs": "retrieval",
    "scored": "similarity",
    "labelled": "classification",
    "vectors": "none",
    "texts": "none",
}
SHOWN = 5  # bad rows that an error quotes
LARGEST = float(np.finfo(np.float32).max)  # what a score may be and a float32 hold
SHORTEST = 1e-18  # of a vector's length: its square is a float32, and its inverse's


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        texts: prompted: anchor, positive and hard negatives; otherwise the text alone.
        score: of a scored pair.
        label: of a labelled text.
        vector: the teacher's: (size,), or (texts, size) for several texts.
    """

    texts: tuple[str, ...]
    score: float | None = None
    label: str | None = None
    vector: Sequence[float] | np.ndarray | None = None


@dataclass(frozen=True)
class Dataset:
    """Rows of one kind."""

    kind: str
    rows: Sequence[Row]


def read(path: str | Path, prompts: Mapping[str, str], task: str | None = None) -> Dataset:
    """Reads a training file.

    Args:
        path: a table: .jsonl, .json, .csv, .tsv or .parquet, also with .gz.
        prompts: of the model, by name.
        task: of `TASKS`, for rows that name none; by default what fits the kind.

    Raises:
        EmbeddingGemmaError: unreadable, columns that tell no kind, no rows, or bad ones, with their
            line numbers.
    """
    name = shown(path)
    rows: list[Row] = []
    bad: list[str] = []  # the first of them
    faults = 0
    kind = None
    for where, raw in _read(path):
        if kind is None and isinstance(raw, dict):
            try:
                kind = _kind(raw)
            except EmbeddingGemmaError as error:  # of the whole file: every row would say it again
                raise EmbeddingGemmaError(f"{name}, {where}: {error}") from None
        try:
            if isinstance(raw, EmbeddingGemmaError):
                raise raw
            rows += _rows(raw, str(kind), prompts, task)
        except EmbeddingGemmaError as error:
            faults += 1
            bad += [f"{where}: {error}"] * (faults <= SHOWN)
    if bad:
        more = f"\n  and {faults - SHOWN:,} more" if faults > SHOWN else ""
        listed = "\n  ".join(bad)
        noun = "row" if faults == 1 else "rows"
        raise EmbeddingGemmaError(f"{name} has {faults:,} bad {noun}:\n  {listed}{more}")
    if kind is None:
        raise EmbeddingGemmaError(f"{name} has no rows")
    if kind == "labelled":
        _check_labels(name, rows)
    if len({0 if row.vector is None else len(row.vector) for row in rows}) > 1:
        raise EmbeddingGemmaError(f"{name}: expected vectors of one length")
    return Dataset(kind, rows)


def _read(path: str | Path) -> Iterator[TableRow]:
    """The rows of a table, the names of their columns in small letters."""
    try:
        for where, raw in read_rows(path):
            if isinstance(raw, dict):
                raw = {column.strip().lower(): value for column, value in raw.items()}
            yield where, raw
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {shown(path)}: {error.strerror}") from None


def _kind(columns: Collection[str]) -> str:
    """What the columns of the first row tell; those without a value count."""
    for kind, roles in KINDS.items():
        if all(any(name in columns for name in names) for names in roles.values()):
            _names(columns, kind)
            if other := _other(columns, kind):
                raise EmbeddingGemmaError(
                    f"{', '.join(roles)} and {other[0]} are columns of different kinds: remove one side"
                )
            return kind
    known = "; or ".join(", ".join(map(_with_aliases, roles.values())) for roles in KINDS.values())
    found = ", ".join(map(shown, columns)) or "none"
    raise EmbeddingGemmaError(f"expected the columns {known}; got {found:.300}")


def _with_aliases(names: tuple[str, ...]) -> str:
    return f"{names[0]} (or {', '.join(names[1:])})"


def _names(columns: Collection[str], kind: str) -> dict[str, str]:
    """Which column has which role. One of the role's own name wins over those of other names."""
    found = {}
    for role, names in KINDS[kind].items():
        there = [name for name in names if name in columns]
        if len(there) > 1 and role not in there:
            raise EmbeddingGemmaError(
                f"{' and '.join(there)} may each be the {role}: remove one, or call it {role}"
            )
        if there:
            found[role] = there[0]
    return found


def _other(columns: Collection[str], kind: str) -> list[str]:
    """Columns that mean something in another kind alone."""
    own = {name for names in KINDS[kind].values() for name in names}
    return sorted(
        name
        for name in columns
        if name not in own and (name in ALIASES or (kind != "pairs" and NEGATIVE.fullmatch(name)))
    )


def _rows(
    raw: Mapping[str, Any], kind: str, prompts: Mapping[str, str], default_task: str | None
) -> list[Row]:
    """A row of the file as examples: one for each positive."""
    raw = {column: value for column, value in raw.items() if not _is_missing(value)}
    names = _names(raw, kind)
    if missing := [role for role in KINDS[kind] if role not in names]:
        raise EmbeddingGemmaError(f"no {', '.join(missing)}")
    if other := _other(raw, kind):
        raise EmbeddingGemmaError(
            f"expected {', '.join(KINDS[kind])} alone, as in the first row, got {other[0]} too"
        )
    task = raw.get("task") or default_task or DEFAULT_TASK[kind]
    if not isinstance(task, str) or task not in TASKS:
        raise EmbeddingGemmaError(f"expected task {', '.join(TASKS)}, got {quoted(task)}")
    first, second = (prompt_for(prompts, name) if name else "" for name in TASKS[task])
    if kind == "pairs":
        titled = with_title(second, _title(raw))
        anchor = first + _text(raw, names["anchor"])
        negatives = [second + text for text in _negatives(raw)]
        return [Row((anchor, titled + text, *negatives)) for text in _texts(raw, names["positive"])]
    if kind == "scored":
        texts = (first + _text(raw, names["sentence1"]), second + _text(raw, names["sentence2"]))
        return [Row(texts, score=_number(raw[names["score"]]))]
    text = first + _text(raw, names["text"])
    if kind == "labelled":
        return [Row((text,), label=_label(raw[names["label"]]))]
    if kind == "texts":
        return [Row((text,))]
    return [Row((text,), vector=_vector(raw[names["vector"]]))]


def _is_missing(value: Any) -> bool:
    return value is None or value in ("", []) or (isinstance(value, float) and math.isnan(value))


def _text(raw: Mapping[str, Any], column: str) -> str:
    value = raw[column]
    if not isinstance(value, str) or not value.strip():
        raise EmbeddingGemmaError(f"expected {column} to be a text, got {quoted(value)}")
    return value


def _texts(raw: Mapping[str, Any], column: str) -> list[str]:
    """One text or a list. What CSV made of a list is neither."""
    value = raw[column]
    a_list = column == "negatives" or str(value).startswith(("['", '["'))
    if isinstance(value, str) and not a_list:
        return [_text(raw, column)]
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise EmbeddingGemmaError(f"expected {column} to be a list of texts, got {quoted(value)}")
    return value


def _negatives(raw: Mapping[str, Any]) -> list[str]:
    """Of all the columns of negatives, in the order of their numbers."""
    names = sorted(filter(NEGATIVE.fullmatch, raw), key=lambda name: (len(name), name))
    return [text for name in names for text in _texts(raw, name)]


def _title(raw: Mapping[str, Any]) -> str | None:
    title = raw.get("title")
    if title is not None and not isinstance(title, str):
        raise EmbeddingGemmaError(f"expected title to be a text, got {quoted(title)}")
    return title if title and title.strip() else None


def _label(value: Any) -> str:
    """A name or a class's number, which an empty cell elsewhere in the column made a float."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or not str(value).strip():
        raise EmbeddingGemmaError(f"expected label to be a name or a whole number, got {quoted(value)}")
    return str(value)


def _vector(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise EmbeddingGemmaError(f"expected vector to be a list of numbers, got {quoted(value)}")
    vector = tuple(map(_number, value))
    if not SHORTEST < math.hypot(*vector) < 1 / SHORTEST:
        what = "a length that float32 can square" if any(vector) else "a direction"
        raise EmbeddingGemmaError(f"expected vector to have {what}, got {quoted(value)}")
    return vector


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not abs(number) <= LARGEST:
        raise EmbeddingGemmaError(f"expected a number, got {quoted(value)}")
    return number


def _check_labels(name: str, rows: Sequence[Row]) -> None:
    """Two texts of a label make a pair, and two labels a contrast."""
    count = Counter(row.label for row in rows)
    lonely = [f"{label:.40}" for label, n in count.items() if n < 2]
    if lonely:
        raise EmbeddingGemmaError(
            f"{name}: expected two texts or more of each label, "
            f"found one of {', '.join(lonely[:SHOWN])}"
        )
    if len(count) < 2:
        raise EmbeddingGemmaError(
            f"{name}: expected two labels or more, all are {lonely or list(count)}"
        )
