"""JSON as the standard has it, written and read: no NaN, no infinity, one kind of error.

Python's json writes `NaN`, which JavaScript and most other readers refuse, and reads it back.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError


def dumps(value: object, **style: Any) -> str:
    """JSON text of a value.

    Args:
        value: what `json.dumps` takes.
        **style: of `json.dumps`: indent, ensure_ascii, separators.

    Raises:
        EmbeddingGemmaError: a number is NaN or infinite; the message says where it stands.
    """
    try:
        return json.dumps(value, allow_nan=False, **style)
    except ValueError:
        raise EmbeddingGemmaError(
            f"expected finite numbers to write as JSON, got NaN or infinity at {_not_finite(value)}"
        ) from None


def loads(text: str | bytes) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: not UTF-8, not JSON, a number beyond float64, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_number, parse_float=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {text[:40]}")
    return number


def _not_finite(value: object, place: str = "") -> str:
    """Where the first NaN or infinity stands, "models.0.score"; empty where there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place.lstrip(".") or "the top"
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    parts = value.items() if isinstance(value, Mapping) else ()
    return next(filter(None, (_not_finite(part, f"{place}.{key}") for key, part in parts)), "")
