"""What `encode`, `encode_query` and `encode_document` can be asked for, and the checks of it."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import shown, whole
from mlx_embeddinggemma.precision import Precision

OutputValue = Literal["sentence_embedding", "token_embeddings"]


class Keywords(TypedDict, total=False):
    """Keywords that leave open what kind of array comes back; `EmbeddingGemma.encode` explains them."""

    prompt_name: str | None
    prompt: str | None
    truncate_dim: int | None
    batch_tokens: int | None
    batch_size: int | None
    show_progress_bar: bool | None
    precision: Precision | None
    normalize_embeddings: bool
    device: object
    task: str | None
    pool: None
    chunk_size: None
    processing_kwargs: None


class AllKeywords(Keywords, total=False):
    """And those that decide it, and the other names of the texts."""

    output_value: OutputValue
    return_mlx: bool
    convert_to_numpy: bool
    convert_to_tensor: bool
    inputs: str | Iterable[str] | None
    sentences: str | Iterable[str] | None


@dataclass(frozen=True)
class Job:
    """A call of `encode`, its arguments checked.

    Attributes:
        texts: a string, or what gives strings.
        prompt: in front of each text.
        dim: size of the vectors.
        rescale: give truncated vectors unit length again.
        batch_tokens: tokens a batch may hold.
        batch_size: texts a batch may hold.
        show_progress_bar: None decides by the terminal.
    """

    texts: Any
    prompt: str
    dim: int
    rescale: bool
    batch_tokens: int | None
    batch_size: int | None
    show_progress_bar: bool | None


def the_texts(**names: Any) -> Any:
    """The one argument of several names that was given.

    Raises:
        TypeError: none was, or more than one.
    """
    given = {name: texts for name, texts in names.items() if texts is not None}
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise TypeError(f"expected texts, under one of the names {', '.join(names)}; got {got}")
    return next(iter(given.values()))


def count(name: str, value: int | None) -> int | None:
    """A whole number of at least 1, or None.

    Raises:
        TypeError: not a whole number.
        EmbeddingGemmaError: out of range.
    """
    return None if value is None else whole(name, value, 1, sys.maxsize)


def check_output_value(value: object, precision: Precision) -> None:
    """Raises EmbeddingGemmaError for what is no `OutputValue`, or not to be had in that precision."""
    if not isinstance(value, str) or value not in ("sentence_embedding", "token_embeddings"):
        why = ": torch's features of a whole batch are not kept" if value is None else ""
        raise EmbeddingGemmaError(
            f"expected output_value 'sentence_embedding' or 'token_embeddings', got {shown(value)}{why}"
        )
    if value == "token_embeddings" and precision != "float32":
        raise EmbeddingGemmaError(f"expected token embeddings in float32, got {precision!r}")


REFUSED = {
    "pool": "one process uses the whole machine",
    "chunk_size": "it belongs to a pool; batch_tokens bounds memory",
    "processing_kwargs": "set max_length when loading, and the rest in the checkpoint's files",
}


def refuse(**given: object) -> None:
    """Raises EmbeddingGemmaError for an argument of `REFUSED` that is not None."""
    for name, value in given.items():
        if value is not None:
            raise EmbeddingGemmaError(f"expected no {name}, got {shown(value)}: {REFUSED[name]}")


_FILES = "change the checkpoint's files, and load those"
_LOGIN = "run `hf auth login`, or set HF_TOKEN"
REFUSED_WHEN_LOADING = {
    "model_name_or_path": "the first argument is called model",
    "modules": "give a checkpoint's folder",
    "cache_folder": "set HF_HOME",
    "trust_remote_code": "no repository's code runs here",
    "token": _LOGIN,
    "use_auth_token": _LOGIN,
    "model_kwargs": "choose the dtype, and leave out the rest",
    "tokenizer_kwargs": _FILES,
    "processor_kwargs": _FILES,
    "config_kwargs": _FILES,
    "model_card_data": "edit the README.md that save_pretrained writes",
    "backend": "MLX computes",
}


def refuse_when_loading(others: Mapping[str, object]) -> None:
    """Answers sentence-transformers' other arguments of a model: those that say nothing are fine.

    Raises:
        TypeError: no such argument, here or there.
        EmbeddingGemmaError: one of `REFUSED_WHEN_LOADING`.
    """
    for name, value in others.items():
        if name not in REFUSED_WHEN_LOADING:
            raise TypeError(f"EmbeddingGemma has no argument {name!r:.80}")
        if value not in (None, False) and value != {}:
            why = REFUSED_WHEN_LOADING[name]
            raise EmbeddingGemmaError(f"expected no {name}, got {shown(value)}: {why}")
