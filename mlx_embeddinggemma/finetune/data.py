"""Training files to rows of prompted texts, every row checked before training starts.

JSON lines or CSV with a header, a row each. Five kinds, told apart by their columns:

    pairs    anchor, positive; perhaps negative, negative_1, negative_2, ... or (JSON) a list negatives;
             perhaps title, of the positive
    scored   sentence1, sentence2, score
    labelled text, label
    vectors  text, vector: the teacher's, a list of numbers
    texts    text: the model as it starts is the teacher

Any row may name its `task`, which decides the prompts.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.prompts import prompt_for, with_title

KINDS = {
    "pairs": ("anchor", "positive"),
    "scored": ("sentence1", "sentence2", "score"),
    "labelled": ("text", "label"),
    "vectors": ("text", "vector"),
    "texts": ("text",),
}
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
        path: .jsonl, .json (one object a line) or .csv.
        prompts: of the model, by name.
        task: of `TASKS`, for rows that name none; by default what fits the kind.

    Raises:
        EmbeddingGemmaError: unreadable, no rows, or bad ones, with their line numbers.
    """
    path = Path(path)
    rows: list[Row] = []
    bad: list[str] = []
    kind = None
    for line, raw in _lines(path):
        try:
            if isinstance(raw, EmbeddingGemmaError):
                raise raw
            kind = kind or _kind(raw)
            rows.append(_row(raw, kind, prompts, task))
        except EmbeddingGemmaError as error:
            bad.append(f"line {line}: {error}")
    if bad:
        more = f"\n  and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        listed = "\n  ".join(bad[:SHOWN])
        noun = "row" if len(bad) == 1 else "rows"
        raise EmbeddingGemmaError(f"{path} has {len(bad):,} bad {noun}:\n  {listed}{more}")
    if kind is None:
        raise EmbeddingGemmaError(f"{path} has no rows")
    if kind == "labelled":
        _check_labels(path, rows)
    if len({0 if row.vector is None else len(row.vector) for row in rows}) > 1:
        raise EmbeddingGemmaError(f"{path}: expected vectors of one length")
    return Dataset(kind, rows)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | EmbeddingGemmaError]]:
    """Line number and columns of each row, or what is wrong with it; empty values left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for raw in reader:
                    if None in raw:
                        yield (
                            reader.line_num,
                            EmbeddingGemmaError(
                                f"expected {len(reader.fieldnames or ())} columns, as in the header"
                            ),
                        )
                        continue
                    yield reader.line_num, {key: value for key, value in raw.items() if value}
            elif path.suffix in (".jsonl", ".json"):
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield line, _json(text)
            else:
                raise EmbeddingGemmaError(f"expected a .jsonl or .csv file, got {path}")
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EmbeddingGemmaError(f"{path} is not UTF-8 text") from None
    except csv.Error as error:
        raise EmbeddingGemmaError(f"{path}, line {reader.line_num}: {error}") from None


def _json(text: str) -> dict[str, Any] | EmbeddingGemmaError:
    try:
        raw = json.loads(text)
    except ValueError as error:
        return EmbeddingGemmaError(f"not JSON: {error}")
    if not isinstance(raw, dict):
        return EmbeddingGemmaError(f"expected a JSON object, got {text.strip()[:40]}")
    return {key: value for key, value in raw.items() if value not in (None, "", [])}


def _kind(raw: Mapping[str, Any]) -> str:
    for kind, columns in KINDS.items():
        if set(columns) <= raw.keys():
            return kind
    known = "; or ".join(", ".join(columns) for columns in KINDS.values())
    raise EmbeddingGemmaError(f"expected the columns {known}; got {', '.join(raw) or 'none'}")


def _row(
    raw: Mapping[str, Any], kind: str, prompts: Mapping[str, str], default_task: str | None
) -> Row:
    if missing := [column for column in KINDS[kind] if column not in raw]:
        raise EmbeddingGemmaError(f"no {', '.join(missing)}")
    task = raw.get("task") or default_task or DEFAULT_TASK[kind]
    if task not in TASKS:
        raise EmbeddingGemmaError(f"expected task {', '.join(TASKS)}, got {task!r}")
    first, second = (prompt_for(prompts, name) if name else "" for name in TASKS[task])
    if kind == "pairs":
        positive = with_title(second, raw.get("title")) + _text(raw, "positive")
        negatives = [second + text for text in _negatives(raw)]
        return Row((first + _text(raw, "anchor"), positive, *negatives))
    if kind == "scored":
        texts = (first + _text(raw, "sentence1"), second + _text(raw, "sentence2"))
        return Row(texts, score=_number(raw["score"]))
    text = first + _text(raw, "text")
    if kind == "labelled":
        return Row((text,), label=str(raw["label"]))
    if kind == "texts":
        if extra := {"label", "vector"} & raw.keys():
            raise EmbeddingGemmaError(f"expected text alone, as in the first row, got {min(extra)} too")
        return Row((text,))
    if not isinstance(raw["vector"], list):
        raise EmbeddingGemmaError(f"expected vector to be a list of numbers, got {raw['vector']!r:.40}")
    vector = tuple(map(_number, raw["vector"]))
    if not any(vector):
        raise EmbeddingGemmaError("expected vector to have a direction, got zeros alone")
    return Row((text,), vector=vector)


def _text(raw: Mapping[str, Any], column: str) -> str:
    value = raw[column]
    if not isinstance(value, str) or not value.strip():
        raise EmbeddingGemmaError(f"expected {column} to be a text, got {value!r:.40}")
    return value


def _negatives(raw: Mapping[str, Any]) -> list[str]:
    names = [n for n in raw if n == "negative" or n.startswith("negative_")]
    found = [_text(raw, name) for name in sorted(names)]
    many = raw.get("negatives", [])
    if not isinstance(many, list) or not all(isinstance(n, str) and n.strip() for n in many):
        raise EmbeddingGemmaError(f"expected negatives to be a list of texts, got {many!r:.40}")
    return found + many


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise EmbeddingGemmaError(f"expected a number, got {value!r:.40}")
    return number


def _check_labels(path: Path, rows: Sequence[Row]) -> None:
    """Two texts of a label make a pair, and two labels a contrast."""
    count = Counter(row.label for row in rows)
    lonely = [str(label) for label, n in count.items() if n < 2]
    if lonely:
        raise EmbeddingGemmaError(
            f"{path}: expected two texts or more of each label, "
            f"found one of {', '.join(lonely[:SHOWN])}"
        )
    if len(count) < 2:
        raise EmbeddingGemmaError(
            f"{path}: expected two labels or more, all are {lonely or list(count)}"
        )
