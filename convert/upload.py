"""A converted folder to the Hugging Face hub."""

from pathlib import Path

from mlx_embeddinggemma.errors import EmbeddingGemmaError


def check_repo(name: str) -> None:
    """Refuses, before any work, what cannot be a repository's name.

    Raises:
        EmbeddingGemmaError: it is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise EmbeddingGemmaError("--upload-repo: expected a repository's name such as user/model-4bit")


def upload(folder: Path, name: str) -> str:
    """Creates the repository where it is not there yet, and commits the folder's files in one go.

    Returns:
        The commit's address.

    Raises:
        EmbeddingGemmaError: no access or no network; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Converted by mlx-embeddinggemma"
        )
    # requests' errors are OSErrors; httpx's, of newer versions of the hub's client, are their own.
    except (HfHubHTTPError, OSError) as error:
        raise _failed(folder, name, error) from None
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise _failed(folder, name, error) from None
    return str(commit.commit_url)


def _failed(folder: Path, name: str, error: Exception) -> EmbeddingGemmaError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return EmbeddingGemmaError(
        f"{folder} is written, uploading it to {name} failed: {reason}: check the name and "
        f"`hf auth login`, then run `hf upload {name} {folder}`"
    )
