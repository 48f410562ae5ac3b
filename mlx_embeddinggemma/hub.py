"""A model's name to a folder on this machine."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import path, shown, text
from mlx_embeddinggemma.json_files import read_json, read_object

DEMO = Path(__file__).parent / "demo"
# Just what loading and copying need: repositories also carry ONNX and GGUF files of the same weights.
BESIDE = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "conversion.json",
    "README.md",
)
FILES = (
    *BESIDE,
    "model.safetensors",
    "sentence_*_config.json",
    "model-*.safetensors",
    "*/config.json",
    "*_Dense/model.safetensors",
)


def find(model: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of "demo", of a path, or of a hub id (downloaded where it is not cached).

    Absolute and without links: what is read from it later is what was found now, wherever the process
    has gone meanwhile and whatever a link points to by then.

    Raises:
        EmbeddingGemmaError: nothing there, no access, or no network; the message says what to do.
    """
    if not str(model):  # the working directory, to pathlib
        raise EmbeddingGemmaError(
            "expected 'demo', a checkpoint's folder or a hub id, got an empty name"
        )
    folder = path("model", model)
    revision = None if revision is None else text("revision", revision)
    marks = ("config.json", "adapter_config.json", "modules.json")
    if str(model) == "demo" and not any((folder / name).is_file() for name in marks):
        return DEMO
    if folder.is_dir():
        if model == "demo":
            # As with every other name, a folder comes before what is elsewhere; but say so.
            warnings.warn(
                f"'demo' is the checkpoint in {folder.resolve()} here, not the bundled one: say "
                "'./demo' for it, and call from another folder for the bundled one",
                stacklevel=3,
            )
        return folder.resolve()
    name = str(model) if str(model).isprintable() else shown(str(model))
    if is_gguf(folder):
        raise EmbeddingGemmaError(
            f"{name} is a GGUF file: make a folder of it first, "
            f"`mlx-embeddinggemma convert {name} FOLDER --recipe fp32`"
        )
    if folder.exists():
        raise EmbeddingGemmaError(f"{name} is a file; expected a checkpoint's folder or a hub id")
    if isinstance(model, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise EmbeddingGemmaError(
            f"no folder {name}; expected 'demo', a checkpoint's folder or a hub id such as "
            "'google/embeddinggemma-300m'"
        )
    return _download(name, revision, local_files_only)


def is_gguf(path: Path) -> bool:
    """Whether it is a GGUF file, whatever its name: Ollama's are `sha256-...`."""
    try:
        if path.is_file():  # and no pipe, which would wait for a writer
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
    except OSError:
        pass
    return False


def _named(folder: Path) -> list[str]:
    """Weights that a checkpoint's own files name, where no pattern of `FILES` has brought them."""
    index, modules = (folder / name for name in ("model.safetensors.index.json", "modules.json"))
    shards = read_object(index, optional=True).get("weight_map")
    listed = read_json(modules) if modules.exists() else []
    names = [*shards.values()] if isinstance(shards, dict) else []
    for entry in listed if isinstance(listed, list) else []:
        place = str(entry.get("path")) if isinstance(entry, dict) else ""
        # mlx-embeddings copies modules.json without the folders it lists.
        if str(entry).rpartition(".Dense")[1] and (folder / place / "config.json").exists():
            names.append(f"{place}/model.safetensors")
    return sorted({n for n in names if isinstance(n, str) and not (folder / n).exists()})


def download_again(folder: Path) -> str:
    """What to do about a folder that lacks a file: one of the hub's cache was left half-way."""
    snapshots, cached = folder.resolve().parent, folder.resolve().parent.parent.name
    if snapshots.name == "snapshots" and cached.startswith("models--"):
        name = cached.removeprefix("models--").replace("--", "/", 1)
        return f"its download did not end: run `hf download {name}`"
    return "download the repository again, all folders included"


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

    def download(patterns: Sequence[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
            )
        ).resolve()

    try:
        folder = download(FILES)
        if not local_files_only and (rest := _named(folder)):
            folder = download(rest)
        return folder
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
