"""`4bit-tuned`: plain text decides where the bits go and how each matrix is rounded. No labels."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from mlx_embeddinggemma import layout
from mlx_embeddinggemma.checkpoint import some
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.text_files import open_lines

from .budget import within_budget
from .formats import DTYPES, pack
from .recipes import Format, Recipe
from .rounding import Feedback, feedback, round_rows
from .sensitivity import Hessian, hessians
from .sources import Source

TEXTS = Path(__file__).parent / "calibration" / "texts.txt"
LEAST = 32  # texts; fewer tell too little of a matrix of hundreds of inputs
LONGEST = 64  # tokens: what lies beyond would only repeat

Packer = Callable[[str, mx.array, Format, str], dict[str, mx.array]]


def plainly(path: str, rows: mx.array, chosen: Format, dtype: str) -> dict[str, mx.array]:
    """`pack`, whatever the matrix."""
    return pack(rows, chosen, dtype)


def read_texts(path: Path) -> list[str]:
    """The calibration texts, one a line.

    Raises:
        EmbeddingGemmaError: the file cannot be read, or holds too few.
    """
    try:
        with open_lines(path) as lines:
            texts = [line.rstrip("\n") for line in lines if line.strip()]
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    if len(texts) < LEAST:
        raise EmbeddingGemmaError(
            f"{path} holds {len(texts)} texts (one a line); expected at least {LEAST}"
        )
    return texts


def tune(
    source: Source, recipe: Recipe, dtype: str, ids: Sequence[Sequence[int]], progress: bool
) -> tuple[Recipe, Packer]:
    """The recipe with its bits given out, and the way to round by it.

    Args:
        source: the checkpoint.
        recipe: one with a budget.
        dtype: of scales and biases.
        ids: tokens of the calibration texts.
        progress: a bar on stderr.
    """
    with tqdm(total=len(ids), desc="calibrating", unit=" texts", delay=1, disable=not progress) as bar:
        found = hessians(source, [row[:LONGEST] for row in ids], bar.update)
    bad = sorted(path for path, hessian in found.items() if not np.isfinite(hessian).all())
    if bad:
        raise EmbeddingGemmaError(
            f"{source.name}: calibration texts give NaN or infinite activations at {some(bad)}: "
            "the weights are damaged"
        )
    return within_budget(recipe, source, found, dtype), _packer(found)


def _packer(found: Mapping[str, Hessian]) -> Packer:
    stored_in = {part: path for path in found for part in layout.parts(path)}

    @lru_cache(2)  # a matrix's rows come one after the other
    def passed(path: str) -> Feedback:
        return feedback(found[path])

    def tuned(path: str, rows: mx.array, chosen: Format, dtype: str) -> dict[str, mx.array]:
        return round_rows(rows, passed(stored_in[path]), chosen, DTYPES[dtype])

    return tuned
