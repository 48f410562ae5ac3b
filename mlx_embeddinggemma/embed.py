"""The `embed` command: texts from the command line or a file, vectors to a file, a chunk at a time."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from mlx_embeddinggemma.encoder import CHUNK, EmbeddingGemma
from mlx_embeddinggemma.errors import EmbeddingGemmaError


def embed(
    texts: Sequence[str] = (),
    *,
    input: str | None = None,
    output: str = "-",
    model: str = "google/embeddinggemma-300m",
    prompt_name: str | None = None,
    dim: int | None = None,
) -> None:
    """Embeds `texts`, or the lines of `input`, and writes the vectors.

    Args:
        texts: the texts.
        input: a file with a text a line ("-" is standard input), instead of `texts`.
        output: "x.npy" (n, dim) float32, "x.jsonl" ({"text", "embedding"} a line), "x.parquet"
            (columns text and embedding; needs pyarrow), or "-" for JSON lines on standard output.
            A file appears when it is complete.
        model: see `EmbeddingGemma`.
        prompt_name: see `EmbeddingGemma.encode`.
        dim: see `EmbeddingGemma.encode`.

    Raises:
        EmbeddingGemmaError: no texts or two sources of them, an unknown kind of output, or the
            model's or a file's fault.
    """
    if bool(texts) == (input is not None):
        raise EmbeddingGemmaError("expected texts, or --input FILE with a text a line; one of them")
    kind = ".jsonl" if output == "-" else Path(output).suffix
    if kind not in WRITERS:
        raise EmbeddingGemmaError(
            f"expected --output FILE.npy, FILE.jsonl, FILE.parquet or -, got {output}"
        )
    source = nullcontext(iter(texts)) if input is None else _lines(input)
    target = nullcontext(sys.stdout.buffer) if output == "-" else _new_file(Path(output))
    encoder = EmbeddingGemma(model, truncate_dim=dim)
    with source as lines, target as file, WRITERS[kind](file) as writer:
        writer.write([], encoder.encode([]))  # a file of no vectors is a whole file too
        with tqdm(total=len(texts) or None, unit=" texts", delay=1, disable=None) as bar:
            while chunk := list(islice(lines, CHUNK)):
                vectors = encoder.encode(chunk, prompt_name=prompt_name, show_progress_bar=False)
                writer.write(chunk, vectors)
                bar.update(len(chunk))


@contextmanager
def _lines(path: str) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file, without their ends."""
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:

        def decode(raw: Iterable[bytes]) -> Iterator[str]:
            for number, line in enumerate(raw, 1):
                try:
                    yield line.rstrip(b"\r\n").decode()
                except UnicodeDecodeError as error:
                    raise EmbeddingGemmaError(
                        f"{path}, line {number}: expected UTF-8 text: {error}"
                    ) from None

        yield decode(file)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the block succeeds, and leaves nothing when it fails."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w+b") as file:
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
            self._file.write(line.encode("utf-8", "replace") + b"\n")


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
        table = pa.table({"text": pa.array(texts, pa.string()), "embedding": embedding})
        if self._writer is None:
            self._writer = pa.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)


WRITERS: dict[str, type[Writer]] = {
    ".jsonl": JsonlWriter,
    ".npy": NpyWriter,
    ".parquet": ParquetWriter,
}
