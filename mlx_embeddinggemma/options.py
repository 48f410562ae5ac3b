"""What `encode`, `encode_query` and `encode_document` can be asked for, and the checks of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import shown
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
    precision: Precision
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


def check_output_value(value: object) -> None:
    """Raises EmbeddingGemmaError for what is no `OutputValue`."""
    if not isinstance(value, str) or value not in ("sentence_embedding", "token_embeddings"):
        why = ": torch's features of a whole batch are not kept" if value is None else ""
        raise EmbeddingGemmaError(
            f"expected output_value 'sentence_embedding' or 'token_embeddings', got {shown(value)}{why}"
        )


def refuse(**instead: tuple[object, str]) -> None:
    """Raises EmbeddingGemmaError for an argument that was given although nothing here honours it.

    Args:
        **instead: by name, its value and what to do instead.
    """
    for name, (value, hint) in instead.items():
        if value is not None:
            raise EmbeddingGemmaError(f"expected no {name}, got {shown(value)}: {hint}")
