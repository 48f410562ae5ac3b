"""What a caller passed, checked under its name: one line instead of a traceback from deep inside."""

import errno
import math
import operator
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

from mlx_embeddinggemma.errors import EmbeddingGemmaError


def shown(value: object) -> str:
    """A value as a message quotes it: one line of 80 characters at most, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of 5,000 digits, lists 10,000 deep
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 80 else text[:77] + "..."


def path(name: str, value: object) -> Path:
    """A path, `~` expanded; whether anything is there is the caller's question.

    Raises:
        TypeError: not a path.
        EmbeddingGemmaError: none that a file system can hold: a NUL, a name too long, no such user.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"expected {name} to be a path, got {type(value).__name__}")
    try:
        found = Path(value).expanduser()
        os.lstat(found)
    except RuntimeError:
        raise EmbeddingGemmaError(
            f"{name}: there is no such user, or no home: {shown(Path(value).parts[0])}"
        ) from None
    except ValueError as error:  # a NUL, or a character that no file name can hold
        raise EmbeddingGemmaError(f"{name}: expected a path, got {shown(value)}: {error}") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise EmbeddingGemmaError(
                f"{name}: expected a path, got {shown(str(value))}: {error.strerror}"
            ) from None
    return found


def whole(name: str, value: object, least: int, most: int) -> int:
    """A whole number from `least` to `most`; True is none.

    Raises:
        TypeError: not a whole number.
        EmbeddingGemmaError: out of range.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a whole number, got {shown(value)}")
    if not least <= number <= most:
        raise EmbeddingGemmaError(f"expected {name} from {least:,} to {most:,}, got {shown(number)}")
    return number


def number(name: str, value: object, least: float, most: float, *, over: bool = False) -> float:
    """A number from `least` to `most`, or between them with `over` leaving out `least`.

    Raises:
        TypeError: not a number.
        EmbeddingGemmaError: NaN or out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not least <= found <= most or (over and found == least):  # NaN is not within them
        edge = "over" if over else "from"
        raise EmbeddingGemmaError(f"expected {name} {edge} {least:g} to {most:g}, got {shown(value)}")
    return found


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that merely counts as one.

    Raises:
        TypeError: neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} to be True or False, got {shown(value)}")
    return value


def text(name: str, value: object) -> str:
    """A string.

    Raises:
        TypeError: not one.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected {name} to be a string, got {shown(value)}")
    return value


def listed(name: str, value: object) -> list[object]:
    """What a list, tuple or array holds; a string is one thing and not its letters.

    Raises:
        TypeError: no such thing.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    tolist = getattr(value, "tolist", None)  # numpy's, whose truth value is an error
    found = tolist() if callable(tolist) else None
    if not isinstance(found, list):
        raise TypeError(f"expected {name} to be a list, got {shown(value)}")
    return found


def several(name: str, value: object) -> list[object]:
    """What `listed` gives; a string or a path alone is a list of one.

    Raises:
        TypeError: no such thing.
    """
    return [value] if isinstance(value, str | os.PathLike) else listed(name, value)
