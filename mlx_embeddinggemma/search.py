"""The `search` command: passages of text files, ranked by meaning."""

import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlx_embeddinggemma.encoder import EmbeddingGemma
from mlx_embeddinggemma.errors import EmbeddingGemmaError

SUFFIXES = {".txt", ".md", ".markdown", ".rst", ".text"}
PASSAGE = 800  # characters: some 200 tokens, which one vector still describes well


@dataclass(frozen=True)
class Passage:
    """A paragraph, or neighbouring short ones, of a file.

    Attributes:
        line: where it starts, counted from 1.
        title: the heading above it, or the file's name.
    """

    file: str
    line: int
    title: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A passage and the cosine of its vector with the query's."""

    score: float
    passage: Passage


def search(
    query: str,
    paths: Sequence[str | Path],
    *,
    model: str = "google/embeddinggemma-300m",
    dim: int | None = None,
    top_k: int = 5,
) -> list[Hit]:
    """The passages of text files that answer a query best, best first.

    Args:
        query: what is looked for.
        paths: files, and folders whose text and Markdown files are read, subfolders included.
        model: see `EmbeddingGemma`.
        dim: see `EmbeddingGemma.encode`.
        top_k: how many.

    Raises:
        EmbeddingGemmaError: a path is absent or not text, or there is nothing to search.
    """
    if top_k < 1:
        raise EmbeddingGemmaError(f"expected --top-k of at least 1, got {top_k}")
    passages = [passage for file in _files(paths) for passage in _passages(file)]
    if not passages:
        raise EmbeddingGemmaError(f"no text in {', '.join(map(str, paths))}")
    encoder = EmbeddingGemma(model, truncate_dim=dim)
    documents = encoder.encode_document(
        [passage.text for passage in passages], [passage.title for passage in passages]
    )
    scores = encoder.similarity(encoder.encode_query(query), documents)[0]
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Hit(float(scores[i]), passages[i]) for i in best]


def print_hits(hits: Sequence[Hit], *, as_json: bool) -> None:
    """Writes hits to standard output, for a person or as a JSON list."""
    if as_json:
        rows = [{"score": round(hit.score, 6), **asdict(hit.passage)} for hit in hits]
        print(json.dumps(rows, ensure_ascii=False, indent=2, allow_nan=False))
        return
    bold, dim, end = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    for hit in hits:
        place = f"{hit.passage.file}:{hit.passage.line}"
        print(f"{bold}{hit.score:.3f}  {place}{end}  {dim}{hit.passage.title}{end}")
        text = " ".join(hit.passage.text.split())
        print(f"       {text if len(text) <= 200 else text[:197] + '...'}\n")


def _files(paths: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES
                and file.is_file()
                # Not what version control, editors and environments keep for themselves.
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        elif path.exists():
            yield path
        else:
            raise EmbeddingGemmaError(f"no file or folder {path}")


def _passages(file: Path) -> Iterator[Passage]:
    """Paragraphs, short neighbours joined up to `PASSAGE` characters, headings as titles."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise EmbeddingGemmaError(f"{file} is not UTF-8 text") from None
    title, start, text = file.stem, 0, ""
    for number, paragraph, is_heading in _paragraphs(lines):
        if text and (is_heading or len(text) + len(paragraph) > PASSAGE):
            yield Passage(str(file), start, title, text)
            text = ""
        if is_heading:
            title = paragraph.strip("# \t") or title
        else:
            start = start if text else number
            text = f"{text}\n\n{paragraph}" if text else paragraph
    if text:
        yield Passage(str(file), start, title, text)


def _paragraphs(lines: Sequence[str]) -> Iterator[tuple[int, str, bool]]:
    """Line number and text of what stands between blank lines, and whether it is a heading.

    What is longer than a passage is split, at line ends where there are any, so that no text is
    lost to the model's limit. In a fenced block of code `#` starts a comment, not a heading.
    """
    paragraph: list[str] = []
    start = 1
    in_code = False
    for number, line in enumerate([*lines, ""], 1):
        in_code ^= bool(re.match(r"\s*(```|~~~)", line))
        is_heading = not in_code and bool(re.match(r"#{1,6}\s", line))
        if paragraph and (not line.strip() or is_heading):
            yield start, "\n".join(paragraph), False
            paragraph = []
        if is_heading:
            yield number, line, True
            continue
        for piece in textwrap.wrap(line, PASSAGE) if len(line) > PASSAGE else [line]:
            if paragraph and sum(map(len, paragraph)) + len(piece) > PASSAGE:
                yield start, "\n".join(paragraph), False
                paragraph = []
            if piece.strip():
                start = start if paragraph else number
                paragraph.append(piece)
