"""A model's name to a folder on this machine."""

from pathlib import Path

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import path, text

DEMO = Path(__file__).parent / "demo"
# Just what loading and copying need: repositories also carry ONNX and GGUF files of the same weights.
FILES = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*_Pooling/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
    "conversion.json",
    "README.md",
)


def find(model: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of "demo", of a path, or of a hub id (downloaded where it is not cached).

    Raises:
        EmbeddingGemmaError: nothing there, no access, or no network; the message says what to do.
    """
    if str(model) == "demo":
        return DEMO
    folder = path("model", model)
    revision = None if revision is None else text("revision", revision)
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists():
        raise EmbeddingGemmaError(f"{name} is a file; expected a checkpoint's folder or a hub id")
    if isinstance(model, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise EmbeddingGemmaError(
            f"no folder {name}; expected 'demo', a checkpoint's folder or a hub id such as "
            "'google/embeddinggemma-300m'"
        )
    return _download(name, revision, local_files_only)


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )
        )
    except GatedRepoError:
        problem = (
            f"{name} asks you to accept its licence: 1. sign in and accept it at "
            f"https://huggingface.co/{name}  2. run `hf auth login`"
        )
    except RevisionNotFoundError:
        problem = f"{name} has no revision {revision!r}"
    except RepositoryNotFoundError:
        problem = (
            f"the hub has no {name}, or you may not see it: check the name, or run `hf auth login`"
        )
    except LocalEntryNotFoundError:
        problem = (
            f"{name} is not in the local cache and the hub was not reached: go online once "
            f"(and unset HF_HUB_OFFLINE), or run `hf download {name}` where there is a network"
        )
    except HFValidationError as error:
        problem = f"{name!r:.80} is neither a folder nor a hub id: {error!s:.200}"
    except (HfHubHTTPError, OSError) as error:
        problem = f"downloading {name} failed: {error}"
    raise EmbeddingGemmaError(problem)
