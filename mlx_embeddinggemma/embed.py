"""The `embed` command: texts from the command line or a file, vectors to a file, a chunk at a time."""

import json
import os
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from mlx_embeddinggemma import given
from mlx_embeddinggemma.encoder import CHUNK, EmbeddingGemma
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.inputs import strings
from mlx_embeddinggemma.rows import READERS, Row, kind_of, quoted, read_rows
from mlx_embeddinggemma.streams import ESCAPE, stdout_bytes
from mlx_embeddinggemma.text_files import lines_of, open_lines, shown

LOOKED_AT = 100  # rows of a table that tell which columns hold text


def embed(
    texts: Sequence[str] = (),
    *,
    input: str | None = None,
    column: str | None = None,
    output: str = "-",
    model: str = "google/embeddinggemma-300m",
    prompt_name: str | None = None,
    dim: int | None = None,
) -> None:
    """Embeds `texts`, or those of `input`, and writes the vectors.

    Args:
        texts: the texts.
        input: a file instead of `texts`: a table (see `rows`), or a text a line; "-" is standard
            input, a text a line.
        column: of the table; may be left out where only one holds text.
        output: "x.npy" (n, dim) float32, "x.jsonl" ({"text", "embedding"} a line), "x.parquet"
            (columns text and embedding; needs pyarrow), or "-" for JSON lines on standard output.
            A file appears when it is complete.
        model: see `EmbeddingGemma`.
        prompt_name: see `EmbeddingGemma.encode`.
        dim: see `EmbeddingGemma.encode`.

    Raises:
        EmbeddingGemmaError: no texts or two sources of them, a row without a text, an unknown kind
            of output, or the model's or a file's fault.
    """
    listed = given.several("texts", texts)
    given.path("output", output)
    given.path("input", "-" if input is None else input)
    if bool(listed) == (input is not None):
        raise EmbeddingGemmaError("expected texts, or --input FILE with a text a line; one of them")
    if column is not None and (input is None or kind_of(input) is None):
        raise EmbeddingGemmaError(f"--column is of a table: --input with a {', '.join(READERS)} file")
    kind = ".jsonl" if output == "-" else Path(output).suffix.lower()
    if kind not in WRITERS:
        raise EmbeddingGemmaError(
            f"expected --output FILE.npy, FILE.jsonl, FILE.parquet or -, got {shown(output)}"
        )
    source = nullcontext(strings(listed)) if input is None else _texts_of(input, column)
    target = nullcontext(stdout_bytes()) if output == "-" else _new_file(output)
    with source as lines, target as file, WRITERS[kind](file) as writer:
        encoder = EmbeddingGemma(model, truncate_dim=dim)
        writer.write([], encoder.encode([]))  # a file of no vectors is a whole file too
        with tqdm(total=len(listed) or None, unit=" texts", delay=1, disable=None) as bar:
            while chunk := list(islice(lines, CHUNK)):
                vectors = encoder.encode(chunk, prompt_name=prompt_name, show_progress_bar=False)
                writer.write(chunk, vectors)
                bar.update(len(chunk))


@contextmanager
def _texts_of(path: str, column: str | None) -> Iterator[Iterator[str]]:
    """The texts of a file: of a table a column's, else its lines without their ends."""
    if path == "-":
        with lines_of(sys.stdin.buffer) as lines:
            yield (line.rstrip("\n") for line in lines)
    elif kind_of(path):
        yield _column(path, column)
    else:
        with open_lines(path) as lines:
            yield (line.rstrip("\n") for line in lines)


def _column(path: str, column: str | None) -> Iterator[str]:
    """A column's texts; the first rows are read at once, so that a wrong column is told at once."""
    rows = read_rows(path)
    first = list(islice(rows, LOOKED_AT))
    name = _chosen(first, shown(path), column) if first else ""
    return _texts(chain(first, rows), shown(path), name)


def _texts(rows: Iterator[Row], path: str, column: str) -> Iterator[str]:
    for where, row in rows:
        if isinstance(row, EmbeddingGemmaError):
            raise EmbeddingGemmaError(f"{path}, {where}: {row}")
        text = row.get(column)
        if text is None:
            raise EmbeddingGemmaError(f"{path}, {where}: no text in the column {quoted(column)}")
        if not isinstance(text, str):
            raise EmbeddingGemmaError(
                f"{path}, {where}: expected {quoted(column)} to be a text, got {quoted(text)}"
            )
        yield text


def _chosen(rows: Sequence[Row], path: str, column: str | None) -> str:
    """The column that was asked for, or the only one that holds text."""
    values: dict[str, list[Any]] = {}
    for where, row in rows:
        if isinstance(row, EmbeddingGemmaError):
            raise EmbeddingGemmaError(f"{path}, {where}: {row}")
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    found = ", ".join(shown(name) for name in values) or "none"
    if column is not None:
        if column not in values:
            raise EmbeddingGemmaError(f"{path} has no column {shown(column)}, but {found:.500}")
        return column
    texts = [name for name in values if len(values) == 1 or any(map(_is_text, values[name]))]
    if len(texts) != 1:
        which = f"no column of text: {found}"
        if texts:
            which = f"several columns of text: {', '.join(map(shown, texts))}"
        raise EmbeddingGemmaError(f"{path} has {which:.500}; choose with --column NAME")
    warnings.warn(f"{path}: the texts are those of the column {shown(texts[0])}", stacklevel=2)
    return texts[0]


def _is_text(value: object) -> bool:
    """Whether it is more than a number, which CSV writes as text too."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return bool(value.strip())
    return False


@contextmanager
def _new_file(output: str) -> Iterator[BinaryIO]:
    """A file that takes its name when the block succeeds, and leaves nothing when it fails."""
    path = Path(os.path.realpath(os.path.expanduser(output)))  # a link stays, its target is replaced
    if path.exists() and not (stat.S_ISREG(path.stat().st_mode) and os.access(path, os.W_OK)):
        what = "a folder" if path.is_dir() else "no file that may be replaced"
        raise EmbeddingGemmaError(f"cannot write {shown(output)}: it is {what}")
    partial = path.with_name(f".{path.name[:50]}.partial-{os.getpid()}")
    try:
        file = partial.open("w+b")
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {shown(output)}: {error.strerror}") from None
    try:
        with file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Writer(Protocol):
    """Takes vectors chunk by chunk; as a context manager it completes the file."""

    def __init__(self, file: Any) -> None: ...
    def __enter__(self) -> "Writer": ...
    def __exit__(self, *_: object) -> None: ...
    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None: ...


class JsonlWriter:
    """{"text": ..., "embedding": [...]} a line."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Appends a chunk. Nine digits give a float32 back exactly."""
        for text, vector in zip(texts, vectors, strict=True):
            embedding = [float(f"{x:.9g}") for x in vector]
            row = {"text": text, "embedding": embedding}
            line = json.dumps(row, ensure_ascii=False, allow_nan=False)
            self._file.write(line.encode("utf-8", ESCAPE) + b"\n")


class NpyWriter(JsonlWriter):
    """One (n, dim) float32 array; n goes into the header at the end, where numpy leaves room."""

    _rows = 0
    _dim = 0

    def __exit__(self, *_: object) -> None:
        if self._dim:
            self._file.seek(0)
            self._write_header()

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Appends a chunk."""
        if not self._dim:
            self._dim = vectors.shape[1]
            self._write_header()
        self._rows += len(vectors)
        self._file.write(np.ascontiguousarray(vectors, "<f4").data)

    def _write_header(self) -> None:
        shape = (self._rows, self._dim)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class ParquetWriter(JsonlWriter):
    """Columns `text` and `embedding`."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise EmbeddingGemmaError(
                'writing parquet needs pyarrow: pip install "mlx-embeddinggemma[parquet]"'
            ) from None
        self._arrow = pyarrow
        self._writer: Any = None

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Appends a chunk."""
        pa = self._arrow
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        whole = [text.encode("utf-8", "replace").decode() for text in texts]  # no half characters
        table = pa.table({"text": pa.array(whole, pa.string()), "embedding": embedding})
        if self._writer is None:
            self._writer = pa.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)


WRITERS: dict[str, type[Writer]] = {
    ".jsonl": JsonlWriter,
    ".npy": NpyWriter,
    ".parquet": ParquetWriter,
}
