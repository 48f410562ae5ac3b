"""A folder of weights, found and checked name by name; `loading` makes the network of it.

Layouts that load: sentence-transformers (the official one; the head in `2_Dense/`, `3_Dense/`),
mlx-community and this package's converter (a `model.` prefix or none, the head in the same file,
packed weights described by config.json), each under whatever prefix a wrapper gave all its names.
Inside this package there is one set of names, `layout`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_embeddinggemma import layout
from mlx_embeddinggemma.buffers import without_buffers
from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.tensors import FLOATS, Tensor, read_headers


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found sound, nothing loaded yet.

    Attributes:
        tensors: every tensor by its name in `layout`.
        dense: sizes along the head, (768, 3072, 768).
        quantization: settings of each packed matrix by path; float matrices are absent.
    """

    folder: Path
    config: Config
    tensors: Mapping[str, Tensor]
    dense: tuple[int, ...]
    quantization: Mapping[str, dict[str, Any]]

    @property
    def embedding_size(self) -> int:
        """Length of a sentence vector."""
        return self.dense[-1]


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        EmbeddingGemmaError: absent, unreadable or not JSON.
    """
    if not path.is_file():  # nor a folder, nor a pipe that nobody writes to
        raise EmbeddingGemmaError(f"{path.parent} has no {path.name}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise EmbeddingGemmaError(f"{path} is not JSON: {error}") from None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads config and headers and checks that every tensor is there, in its shape and dtype.

    Raises:
        EmbeddingGemmaError: one message that lists all that is missing, left over or misshapen.
    """
    if not (folder / "config.json").exists() and (other := next(folder.glob("*.gguf"), None)):
        raise EmbeddingGemmaError(
            f"{folder} has no config.json, but {shown(other.name)}: make a folder of that file first, "
            f"`mlx-embeddinggemma convert {other} FOLDER --recipe fp32`"
        )
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise EmbeddingGemmaError(f"{folder / 'config.json'}: expected a JSON object")
    config = Config.from_dict(raw)
    tensors = without_buffers(_root_tensors(folder), config, folder)
    modules = _modules(folder)
    _check_pooling(folder, modules or [])
    if "dense.0.weight" not in tensors:
        tensors |= _dense_folders(folder, modules)
    dense = _dense_sizes(tensors, config)
    matrices = layout.matrices(config, dense)
    quantization = {}
    dtypes: dict[str, tuple[str, ...]] = {}
    expected: dict[str, tuple[int, ...]] = {
        f"{path}.weight": shape for path, shape in layout.norms(config).items()
    }
    for path, shape in matrices.items():
        if f"{path}.scales" in tensors:
            if "bits" not in config.quantization:
                raise EmbeddingGemmaError(
                    f"{folder}: {path} is quantized, but config.json has no quantization table"
                )
            quantization[path] = layout.quantization_of(path, config.quantization)
            expected |= layout.packed_shapes(path, shape, quantization[path])
            dtypes[f"{path}.weight"] = ("U32",)
            if quantization[path]["mode"] != "affine":
                dtypes[f"{path}.scales"] = ("U8",)  # small floats of their own
        else:
            expected[f"{path}.weight"] = shape
    _compare(folder, expected, tensors, dtypes)
    return Checkpoint(folder, config, tensors, dense, quantization)


def _root_tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    places = _weight_map(index) if index.exists() else {}
    names = sorted(set(places.values())) or ["model.safetensors"]
    missing = [name for name in names if not os.path.isfile(folder / name)]  # however long the name
    if missing:
        hint = (
            "; only pytorch_model.bin is there: save the model with safe_serialization=True"
            if (folder / "pytorch_model.bin").exists()
            else ""
        )
        raise EmbeddingGemmaError(f"{folder} lacks {', '.join(map(shown, missing[:8]))}{hint}")
    found = read_headers(folder / name for name in names)
    for name, place in places.items():
        if name in found and found[name].path.name != place:
            raise EmbeddingGemmaError(
                f"{index}: expected {name!r:.80} in {shown(place)}, "
                f"found it in {shown(found[name].path.name)}"
            )
    return _named(found, folder)


def _named(found: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors by their names in `layout`: `model.`, `language_model.model.` and the like go."""
    table = f"{layout.TABLE}.weight"
    prefix = next((name.removesuffix(table) for name in found if name.endswith(table)), "")
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        plain = name.removeprefix(prefix).removeprefix("model.")
        if plain in tensors:
            raise EmbeddingGemmaError(
                f"{folder}: expected each tensor once, got {plain!r:.80} under two names: keep one"
            )
        tensors[plain] = tensor
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    raw = read_json(index)
    places = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(places, dict) or not places:
        raise EmbeddingGemmaError(f"{index}: expected an object with a weight_map, got {raw!r:.80}")
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place:
            raise EmbeddingGemmaError(
                f"{index}: expected for {name!r:.80} a file beside it, got {place!r:.80}"
            )
    return places


def _modules(folder: Path) -> list[dict[str, str]] | None:
    """What modules.json lists, None without one."""
    path = folder / "modules.json"
    if not path.exists():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str)
        for m in modules
    ):
        raise EmbeddingGemmaError(f"{path}: expected a list of modules with type and path")
    return modules


def _check_pooling(folder: Path, modules: list[dict[str, str]]) -> None:
    """Refuses a fine-tune that pools otherwise: the network takes the mean over all tokens."""
    for module in modules:
        path = folder / module["path"] / "config.json"
        # mlx-embeddings copies modules.json without the folders it lists: the mean, as the model's own.
        if not module["type"].endswith(".Pooling") or not path.exists():
            continue
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise EmbeddingGemmaError(f"{path}: expected a JSON object")
        marked = [key for key, on in settings.items() if key.startswith("pooling_mode_") and on is True]
        # Newer files name the mode; older ones have a key for each.
        mode = settings.get("pooling_mode") or marked or "mean"
        prompt = settings.get("include_prompt", True)
        if mode not in ("mean", ["mean"], ["pooling_mode_mean_tokens"]) or prompt is not True:
            raise EmbeddingGemmaError(
                f"{path}: expected the mean over all tokens, the prompt's included, got "
                f"{mode!r:.120} with include_prompt {prompt!r:.20}: load it in sentence-transformers"
            )


def _dense_folders(folder: Path, modules: list[dict[str, str]] | None) -> dict[str, Tensor]:
    """The head of the sentence-transformers layout: Dense modules in the order of modules.json."""
    if modules is None:
        raise EmbeddingGemmaError(
            f"{folder} has no dense head: neither dense.0.weight in its weights nor a modules.json "
            "that lists Dense folders. Its vectors would not be EmbeddingGemma's: download the "
            "repository again, all folders included"
        )
    tensors = {}
    for i, module in enumerate(m for m in modules if m["type"].endswith(".Dense")):
        settings = read_json(folder / module["path"] / "config.json")
        if not isinstance(settings, dict):
            raise EmbeddingGemmaError(f"{folder / module['path']}/config.json: expected a JSON object")
        activation = str(settings.get("activation_function", "Identity")).rpartition(".")[2]
        if activation != "Identity" or settings.get("bias"):
            raise EmbeddingGemmaError(
                f"{folder / module['path']}: expected a Dense module without bias or activation, "
                f"got bias {settings.get('bias')}, activation {activation}"
            )
        path = folder / module["path"] / "model.safetensors"
        if not path.is_file():
            raise EmbeddingGemmaError(f"{folder} lacks {module['path']}/model.safetensors")
        for name, tensor in read_headers([path]).items():
            tensors[f"dense.{i}.{name.removeprefix('linear.')}"] = tensor
    return tensors


def _dense_sizes(tensors: Mapping[str, Tensor], config: Config) -> tuple[int, ...]:
    sizes = [config.hidden_size]
    while (weight := tensors.get(f"dense.{len(sizes) - 1}.weight")) is not None:
        if len(weight.shape) != 2:
            raise EmbeddingGemmaError(
                f"{weight.path}: expected for the head's dense.{len(sizes) - 1}.weight a matrix, "
                f"got shape {list(weight.shape)}"
            )
        sizes.append(weight.shape[0])
    return tuple(sizes)


def _compare(
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Tensor],
    dtypes: Mapping[str, tuple[str, ...]],
) -> None:
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing {some(missing)}")
    if extra := sorted(found.keys() - expected.keys()):
        problems.append(f"left over {some(extra)}")
    wrong = [
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if wrong:
        problems.append(f"wrong shape {some(wrong)}")
    wrong = [
        f"{name} {found[name].dtype}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].dtype not in dtypes.get(name, FLOATS)
    ]
    if wrong:
        problems.append(f"wrong dtype {some(wrong)}")
    if any("lora_" in name for name in found):
        problems.append("an adapter that was never merged: save peft's merge_and_unload()")
    if problems:
        raise EmbeddingGemmaError(
            f"{folder} does not hold the tensors its config.json describes: {'; '.join(problems)}"
        )


def some(names: list[str], most: int = 8) -> str:
    """How many names there are, and the first of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(map(shown, names[:most]))}{rest}"


def shown(name: str) -> str:
    """A name out of a file, fit for one line."""
    return f"{name if name.isprintable() else ascii(name):.80}"
