"""Hard negatives from a corpus, found by the model itself."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlx_embeddinggemma import EmbeddingGemma
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.prompts import with_title
from mlx_embeddinggemma.rows import Columns, kind_of, quoted, read_rows
from mlx_embeddinggemma.text_files import open_lines, shown

from .data import Dataset

CHUNK = 1024  # anchors compared with the whole corpus at a time


def mine(
    model: EmbeddingGemma,
    dataset: Dataset,
    corpus: Sequence[str] | None = None,
    *,
    count: int,
    margin: float = 0.95,
) -> Dataset:
    """Gives each pair the passages most like its anchor that are not its positive.

    A passage nearly as like the anchor as the positive is, is likely a right answer that nobody
    marked: only passages below `margin` times the positive's similarity count (the rule of
    NV-Retriever, arXiv 2407.15831). Rows that find fewer than `count` get fewer.

    Args:
        model: finds them.
        dataset: of pairs; negatives that it has are kept.
        corpus: prompted passages; by default the positives of the other rows.
        count: negatives a row.
        margin: share of the positive's similarity that a negative may have.
    """
    if dataset.kind != "pairs":
        raise EmbeddingGemmaError(f"expected pairs to mine negatives for, got {dataset.kind} rows")
    positives = [row.texts[1] for row in dataset.rows]
    passages = list(dict.fromkeys(corpus if corpus is not None else positives))
    vectors = model.encode(passages)
    anchors = model.encode([row.texts[0] for row in dataset.rows])
    right = (anchors * model.encode(positives)).sum(axis=1)
    known: dict[str, set[str]] = {}
    for row in dataset.rows:
        known.setdefault(row.texts[0], {row.texts[0]}).update(row.texts[1:])
    rows = []
    for start in range(0, len(anchors), CHUNK):
        similarity = anchors[start : start + CHUNK] @ vectors.T
        for i, scores in enumerate(similarity, start):
            row = dataset.rows[i]
            # Enough of the best to be left with `count` when those ruled out are gone.
            allowed = np.flatnonzero(scores < margin * right[i])
            wanted = min(len(allowed), count + len(known[row.texts[0]]))
            best = (
                allowed[np.argpartition(-scores[allowed], wanted - 1)[:wanted]] if wanted else allowed
            )
            best = best[np.argsort(-scores[best], kind="stable")]
            found = [passages[j] for j in best if passages[j] not in known[row.texts[0]]]
            rows.append(replace(row, texts=(*row.texts, *found[:count])))
    return replace(dataset, rows=rows)


def read_corpus(path: str | Path, prompt: str) -> list[str]:
    """Passages, prompted: a text a line, or a table's columns `text` and, if there, `title`.

    Raises:
        EmbeddingGemmaError: it cannot be read, has no passages, or a row without a text.
    """
    try:
        if kind_of(path):
            passages = [
                _passage(row, f"{shown(path)}, {where}", prompt) for where, row in read_rows(path)
            ]
        else:
            with open_lines(path) as lines:
                passages = [prompt + line.strip() for line in lines if line.strip()]
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {shown(path)}: {error.strerror}") from None
    if not passages:
        raise EmbeddingGemmaError(f"{shown(path)} has no passages")
    return passages


def _passage(row: Columns | EmbeddingGemmaError, where: str, prompt: str) -> str:
    if isinstance(row, EmbeddingGemmaError):
        raise EmbeddingGemmaError(f"{where}: {row}")
    text, title = row.get("text"), row.get("title")
    if not isinstance(text, str) or not text.strip():
        found = ", ".join(map(shown, row))
        raise EmbeddingGemmaError(
            f"{where}: expected a text in the column text, got {quoted(text)} in {found:.200}"
        )
    return with_title(prompt, title if isinstance(title, str) and title.strip() else None) + text
