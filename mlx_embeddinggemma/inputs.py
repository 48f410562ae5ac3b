"""What counts as texts: a string, or anything that gives strings one after the other.

Lists, tuples, generators, numpy arrays, columns of pandas, polars, pyarrow and `datasets`. What would
give something else in silence is refused: a table gives its columns' names, a dict its keys, a set its
strings in an order that nobody knows.
"""

from collections.abc import Iterator, Mapping, Sized
from itertools import zip_longest
from numbers import Number

import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError

_END = object()


def strings(texts: object, name: str = "text") -> Iterator[str]:
    """The texts, one after the other: nothing is read before it is asked for.

    Args:
        texts: a string is one text.
        name: of one of them, for messages.

    Raises:
        TypeError: no texts, or one among them that is not a string; names its index.
    """
    items = _items(texts, name)
    return (as_text(item, i, name) for i, item in enumerate(items))


def titled(texts: object, titles: object) -> Iterator[tuple[str, str | None]]:
    """Each text with its title, None where it has none: a value that is missing, or blanks.

    Raises:
        TypeError: a text is no string, or a title neither that nor missing; names its index.
        EmbeddingGemmaError: not as many titles as texts.
    """
    texts = [texts] if isinstance(texts, str) else texts
    titles = [titles] if isinstance(titles, str) or is_missing(titles) else titles
    pairs = zip_longest(strings(texts), _items(titles, "title"), fillvalue=_END)
    if isinstance(texts, Sized) and isinstance(titles, Sized) and len(texts) != len(titles):
        raise EmbeddingGemmaError(
            f"expected a title for each of {len(texts)} documents, got {len(titles)}"
        )
    return (_pair(text, title, i) for i, (text, title) in enumerate(pairs))


def as_text(item: object, index: int, name: str = "text") -> str:
    """A string as it is, and that of a pyarrow scalar.

    Raises:
        TypeError: anything else; names the index.
    """
    if isinstance(item, str):
        return item
    value = item.as_py() if hasattr(item, "as_py") else item
    if isinstance(value, str):
        return value
    what = "a missing value" if is_missing(value) else type(value).__name__
    raise TypeError(f"{name} {index}: expected a string, got {what}")


def is_missing(value: object) -> bool:
    """Whether it is None, a NaN of any kind, or pandas' NA or NaT (known by name, without pandas)."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Number | np.generic) and bool(value != value)


def _items(texts: object, name: str) -> Iterator[object]:
    if isinstance(texts, str):
        return iter([texts])
    kind, what = type(texts).__name__, f"expected a string or an iterable of strings as {name}s"
    if isinstance(texts, Mapping):
        raise TypeError(f"{what}, got a {kind}: pass one of its values, or list({name}s.values())")
    if isinstance(texts, set | frozenset):
        raise TypeError(f"{what}, got a {kind}, which has no order: pass sorted({name}s)")
    # Looked up in the class: a polars LazyFrame computes when it is asked itself.
    if hasattr(type(texts), "columns") or hasattr(type(texts), "column_names"):
        raise TypeError(f'{what}, got a {kind}: pass one of its columns, {name}s["NAME"]')
    if isinstance(texts, bytes | bytearray | memoryview):
        raise TypeError(f'{what}, got {kind}: pass {name}s.decode("utf-8")')
    try:
        return iter(texts)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        raise TypeError(f"{what}, got {kind}") from None


def _pair(text: object, title: object, index: int) -> tuple[str, str | None]:
    if text is _END or title is _END:
        rest = "titles" if text is _END else "documents"
        raise EmbeddingGemmaError(f"expected a title for each document, got more {rest}")
    title = title.as_py() if hasattr(title, "as_py") else title
    if is_missing(title) or (isinstance(title, str) and not title.strip()):
        return str(text), None
    return str(text), as_text(title, index, "title")
