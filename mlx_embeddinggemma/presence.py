"""Files that are there by name alone: of an aborted download, or of Git LFS where it was not run."""

from pathlib import Path

from mlx_embeddinggemma.errors import EmbeddingGemmaError


def check_present(path: Path) -> None:
    """Refuses a file without its content.

    Raises:
        EmbeddingGemmaError: empty, a Git LFS pointer, or not to be read.
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
