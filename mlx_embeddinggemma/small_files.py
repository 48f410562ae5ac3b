"""The small files of a checkpoint, read so that what is wrong with them is said by name."""

import json
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError


def check_present(path: Path) -> None:
    """Refuses a file that holds nothing, or only what Git LFS leaves where it did not download.

    Raises:
        EmbeddingGemmaError: empty, a pointer, or not to be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    if not start:
        raise EmbeddingGemmaError(f"{path} is empty: download it again")
    if start.startswith(b"version https://git-lfs"):
        raise EmbeddingGemmaError(
            f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in its folder"
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; {} where there is no such file.

    Raises:
        EmbeddingGemmaError: unreadable, or anything else than an object.
    """
    if not path.exists():
        return {}
    check_present(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise EmbeddingGemmaError(f"{path} is not JSON: {str(error)[:80]}") from None
    if not isinstance(value, dict):
        raise EmbeddingGemmaError(f"{path}: expected a JSON object, got {value!r:.80}")
    return value
