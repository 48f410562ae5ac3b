"""JSON files that other people wrote: read whole, and every value that is of the wrong kind named."""

import json
from pathlib import Path
from typing import Any

from mlx_embeddinggemma import strict_json
from mlx_embeddinggemma.errors import EmbeddingGemmaError


def read_json(path: Path) -> Any:
    """A JSON file's content; a byte order mark, which some editors put in front, is none of it.

    Raises:
        EmbeddingGemmaError: absent, unreadable or not JSON.
    """
    if not path.is_file():  # nor a folder, nor a pipe that nobody writes to
        raise EmbeddingGemmaError(f"{path.parent} has no {path.name}")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise EmbeddingGemmaError(f"{path} is not JSON: {error!s:.200}") from None


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        path: of the file.
        optional: an absent file is an empty object.

    Raises:
        EmbeddingGemmaError: as `read_json`, or it holds something else.
    """
    if optional and not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise EmbeddingGemmaError(f"{path}: expected a JSON object, got {content!r:.80}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes a file for people to read, and the folder that it lies in."""
    path.parent.mkdir(exist_ok=True)
    text = strict_json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
