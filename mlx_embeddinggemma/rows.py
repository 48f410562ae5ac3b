"""Tables to rows: CSV, TSV, JSON lines, JSON arrays and parquet, compressed by gzip or not.

A row is its columns by name, or what is wrong with it, so that who reads can go on and count the bad
ones. Rows come one after the other; only a JSON array stands in memory as a text.
"""

import csv
import gzip
import json
import re
import reprlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.text_files import open_bytes, open_lines, shown

Columns = dict[str, Any]
# Where a row begins ("line 3"), and its columns or its fault.
Row = tuple[str, Columns | EmbeddingGemmaError]

DELIMITERS = ",;\t|"
# CSV has no null: these are what `pandas.read_csv` takes for one, as something wrote them for one.
MISSING = {
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
}  # fmt: skip
LONGEST_FIELD = 2**31 - 1  # characters: the largest that the csv module takes everywhere
BATCH = 1024  # rows of a parquet file in memory
SPACE = re.compile(r"\s*")

_field_limit = Lock()
_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 40
_short.maxlevel = 2


def kind_of(path: str | Path) -> str | None:
    """What table a file is by its name: ".csv" for x.CSV.gz; None for no table."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    suffixes = suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a table, each with the line (in parquet: the row) where it begins, from 1.

    A missing value is None. A bad row does not end the reading of the others.

    Raises:
        EmbeddingGemmaError: no table, or one that cannot be read at all.
        OSError: it cannot be opened.
    """
    kind = kind_of(path)
    if kind is None:
        known = ", ".join(READERS)
        raise EmbeddingGemmaError(f"expected a {known} file, perhaps with .gz, got {shown(path)}")
    return READERS[kind](path)


def quoted(value: object) -> str:
    """A value in a message: some 40 characters, however long or deep it is."""
    return _short.repr(value)


def _csv(path: str | Path) -> Iterator[Row]:
    """Separated by what separates most names in the header: Excel writes ";" in half of Europe."""
    with open_lines(path, newline="") as lines:
        above, first = 0, ""  # lines above the header
        for number, line in enumerate(lines):
            if line.strip():
                above, first = number, line
                break
        if told := re.fullmatch(r'"?sep=(.)"?\s*', first):  # Excel's own line
            above, first, delimiter = above + 1, next(lines, ""), told[1]
        else:
            with _long_fields():
                delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader([first], delimiter=d))))
        yield from _records(chain([first], lines), delimiter, above)


def _tsv(path: str | Path) -> Iterator[Row]:
    with open_lines(path, newline="") as lines:
        yield from _records(lines, "\t")


def _records(lines: Iterator[str], delimiter: str, above: int = 0) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        where = f"line {above + reader.line_num + 1}"
        try:
            with _long_fields():
                record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = str(error).replace("unexpected end of data", "a quote opens and never closes")
            yield where, EmbeddingGemmaError(f"not CSV: {fault}")
            return
        if not header:
            header = [name.strip() for name in record]
            twice = [name for name, count in Counter(header).items() if name and count > 1]
            if twice:
                yield where, EmbeddingGemmaError(f"two columns are called {quoted(twice[0])}")
                return
        elif len(record) > len(header):
            expected = f"expected {len(header)} columns, as in the header, got {len(record)}"
            yield where, EmbeddingGemmaError(expected)
        elif not _is_blank(record):
            record += [""] * (len(header) - len(record))
            values = (None if value in MISSING else value for value in record)
            yield where, {name: value for name, value in zip(header, values, strict=True) if name}


def _is_blank(record: list[str]) -> bool:
    """Of a line of nothing or of blanks, which pandas skips too; an empty field in quotes is a row."""
    return record == [] or (len(record) == 1 and record != [""] and not record[0].strip(" \t"))


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module's limit is the whole process's: lifted for one record, then as it was."""
    with _field_limit:
        before = csv.field_size_limit(LONGEST_FIELD)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _json(path: str | Path) -> Iterator[Row]:
    """An object a line, or one array of objects."""
    with open_lines(path) as lines:
        begun = False
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if not begun and line.lstrip().startswith("["):
                yield from _array(line + "".join(lines), number)
                return
            begun = True
            try:
                yield f"line {number}", _object(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield f"line {number}", _not_json(error)


def _array(text: str, line: int) -> Iterator[Row]:
    """The elements of a JSON array that begins on a line."""
    decode = json.JSONDecoder().raw_decode
    counted = 0
    at = _skip(text, _skip(text, 0) + 1)
    more = not text.startswith("]", at)
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decode(text, at)
        except (ValueError, RecursionError) as error:
            yield f"line {line}", _not_json(error)
            return
        yield f"line {line}", _object(value)
        at = _skip(text, at)
        more = text.startswith(",", at)
        at = _skip(text, at + more)
    if not SPACE.fullmatch(text, at + 1) or not text.startswith("]", at):
        yield f"line {line}", EmbeddingGemmaError("not JSON: expected , or the ] that ends it")


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _object(value: Any) -> Columns | EmbeddingGemmaError:
    if isinstance(value, dict):
        return value
    return EmbeddingGemmaError(f"expected a JSON object, got {quoted(value)}")


def _not_json(error: ValueError | RecursionError) -> EmbeddingGemmaError:
    deep = isinstance(error, RecursionError)
    return EmbeddingGemmaError(
        f"not JSON: {'nested too deeply' if deep else getattr(error, 'msg', error)}"
    )


def _parquet(path: str | Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EmbeddingGemmaError(
            'reading parquet needs pyarrow: pip install "mlx-embeddinggemma[parquet]"'
        ) from None
    with open_bytes(path) as packed, tempfile.TemporaryFile() as whole:
        file: Any = packed
        if isinstance(packed, gzip.GzipFile):  # its end comes first, and gzip cannot go there
            shutil.copyfileobj(packed, whole)
            file = whole
        try:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches(BATCH)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, 1):
                yield f"row {number}", row
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise EmbeddingGemmaError(
                f"{shown(path)} is not parquet, or is damaged: {reason:.200}"
            ) from None


READERS: dict[str, Callable[[str | Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".parquet": _parquet,
}
