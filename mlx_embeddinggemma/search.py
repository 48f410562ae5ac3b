"""The `search` command: passages of text files, ranked by meaning."""

import json
import os
import re
import stat
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlx_embeddinggemma import given
from mlx_embeddinggemma.encoder import EmbeddingGemma
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.text_files import read_text, shown

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

    A file that cannot be read as text is skipped with a warning, also one that is named: a shell's
    `*` names whatever is there. Every file is read once, however often and as what it is named.

    Args:
        query: what is looked for.
        paths: files, and folders whose text and Markdown files are read, subfolders included.
        model: see `EmbeddingGemma`.
        dim: see `EmbeddingGemma.encode`.
        top_k: how many.

    Raises:
        EmbeddingGemmaError: a path is absent, or there is nothing to search or to search for.
    """
    if not given.text("query", query).strip():
        raise EmbeddingGemmaError("expected a query, got an empty one")
    given.whole("top_k", top_k, 1, 2**31)
    named = given.several("paths", paths)
    passages = _read(named)
    if not passages:
        known = ", ".join(sorted(SUFFIXES))
        raise EmbeddingGemmaError(
            f"no text in {', '.join(map(shown, named)):.200}; of folders {known} files are read"
        )
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
        unicode = (sys.stdout.encoding or "").lower() == "utf-8"  # JSON in another encoding is none
        print(json.dumps(rows, ensure_ascii=not unicode, indent=2, allow_nan=False))
        return
    bold, dim, end = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    for hit in hits:
        place = f"{shown(hit.passage.file)}:{hit.passage.line}"
        print(f"{bold}{hit.score:.3f}  {place}{end}  {dim}{shown(hit.passage.title)}{end}")
        text = shown(" ".join(hit.passage.text.split()))
        print(f"       {text if len(text) <= 200 else text[:197] + '...'}\n")


def _read(paths: Iterable[object]) -> list[Passage]:
    passages: list[Passage] = []
    read = skipped = 0
    seen: set[str | tuple[int, int]] = set()  # by its place, and where letters' case or a link hides it
    for path, is_named in _files(paths):
        place = os.path.realpath(path)
        try:
            if place in seen:
                continue
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in seen:
                continue
            if not is_named and not stat.S_ISREG(found.st_mode):  # a pipe would wait for ever
                raise EmbeddingGemmaError(f"{shown(path)} is no file that can be read")
            passages += _passages(path, read_text(path))
            seen.add((found.st_dev, found.st_ino))
            read += 1
        except (OSError, EmbeddingGemmaError) as error:
            reason = f"{shown(path)}: {error.strerror}" if isinstance(error, OSError) else str(error)
            warnings.warn(f"skipped: {reason}", stacklevel=3)
            skipped += 1
        seen.add(place)
    if skipped:
        files = "file or folder was" if skipped == 1 else "files or folders were"
        warnings.warn(f"{skipped:,} {files} skipped, {read:,} read", stacklevel=3)
    return passages


def _files(paths: Iterable[object]) -> Iterator[tuple[Path, bool]]:
    """What is named, and what is in folders, what cannot be read included; and whether it is named."""
    for name in paths:
        if not str(name):  # "." to pathlib, and no more than an unset variable of a shell
            raise EmbeddingGemmaError("expected a file or folder, got an empty name")
        path = given.path("paths", name)
        if path.is_dir():
            yield from ((file, False) for file in sorted(_in_folder(path)))
        elif path.exists() or path.is_symlink():
            yield path, True
        else:
            raise EmbeddingGemmaError(f"no file or folder {shown(path)}")


def _in_folder(folder: Path) -> Iterator[Path]:
    unread: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=lambda e: unread.append(e.filename)):
        # Not what version control, editors and environments keep for themselves.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(parent, name)
    yield from map(Path, unread)


def _passages(path: Path, text: str) -> Iterator[Passage]:
    """Paragraphs, short neighbours joined up to `PASSAGE` characters, headings as titles."""
    title, start, passage = shown(path.stem).strip(), 0, ""
    for number, paragraph, is_heading in _paragraphs(text.split("\n")):
        if passage and (is_heading or len(passage) + len(paragraph) > PASSAGE):
            yield Passage(str(path), start, title, passage)
            passage = ""
        if is_heading:
            title = paragraph.strip("# \t") or title
        else:
            start = start if passage else number
            passage = f"{passage}\n\n{paragraph}" if passage else paragraph
    if passage:
        yield Passage(str(path), start, title, passage)


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
        is_heading = not in_code and bool(re.match(r"#{1,6}(\s|$)", line))
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
