"""A folder of weights, found and checked name by name; `loading` makes the network of it.

Layouts that load: sentence-transformers (the official one; the head in `2_Dense/`, `3_Dense/`),
mlx-community and this package's converter (a `model.` prefix or none, the head in the same file,
packed weights described by config.json), each under whatever prefix a wrapper gave all its names.
Inside this package there is one set of names, `layout`.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_embeddinggemma import hub, layout
from mlx_embeddinggemma.buffers import without_buffers
from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.head import Dense
from mlx_embeddinggemma.json_files import read_json, read_object
from mlx_embeddinggemma.modules import Modules, read_modules, refuse_adapter
from mlx_embeddinggemma.tensors import FLOATS, Tensor, read_headers


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found sound, nothing loaded yet.

    Attributes:
        tensors: every tensor by its name in `layout`.
        dense: sizes along the head, (768, 3072, 768).
        head: what else its layers do.
        quantization: settings of each packed matrix by path; float matrices are absent.
    """

    folder: Path
    config: Config
    tensors: Mapping[str, Tensor]
    dense: tuple[int, ...]
    head: tuple[Dense, ...]
    quantization: Mapping[str, dict[str, Any]]

    @property
    def embedding_size(self) -> int:
        """Length of a sentence vector."""
        return self.dense[-1]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads config and headers and checks that every tensor is there, in its shape and dtype.

    Raises:
        EmbeddingGemmaError: one message that lists all that is missing, left over or misshapen.
    """
    refuse_adapter(folder)
    if not (folder / "config.json").exists():
        if other := next(folder.glob("*.gguf"), None):
            raise EmbeddingGemmaError(
                f"{folder} has no config.json, but {shown(other.name)}: make a folder of that file "
                f"first, `mlx-embeddinggemma convert {other} FOLDER --recipe fp32`"
            )
        raise EmbeddingGemmaError(f"{folder} has no config.json: {hub.download_again(folder)}")
    config = Config.from_dict(read_object(folder / "config.json"))
    tensors = without_buffers(_root_tensors(folder), config, folder)
    modules = read_modules(folder)
    if "dense.0.weight" not in tensors:
        tensors |= _dense_folders(folder, modules)
    dense = _dense_sizes(tensors, config)
    head = _head(modules, len(dense) - 1)
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
    expected |= {f"dense.{i}.bias": (dense[i + 1],) for i, layer in enumerate(head) if layer.bias}
    _compare(folder, expected, tensors, dtypes)
    if modules is not None:
        _check_head(folder, modules, len(dense) - 1)
    return Checkpoint(folder, config, tensors, dense, head, quantization)


def _root_tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    places = _weight_map(index) if index.exists() else {}
    names = sorted(set(places.values())) or ["model.safetensors"]
    missing = [name for name in names if not os.path.isfile(folder / name)]  # however long the name
    if missing:
        hint = (
            "; only pytorch_model.bin is there: save the model with safe_serialization=True"
            if (folder / "pytorch_model.bin").exists()
            else f": {hub.download_again(folder)}"
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


def _dense_folders(folder: Path, modules: Modules | None) -> dict[str, Tensor]:
    """The head of the sentence-transformers layout: Dense modules in the order of modules.json."""
    if modules is None:
        raise EmbeddingGemmaError(
            f"{folder} has no dense head: neither dense.0.weight in its weights nor a modules.json "
            "that lists Dense folders. Its vectors would not be EmbeddingGemma's: "
            f"{hub.download_again(folder)}"
        )
    if not modules.paths and (left := sorted(folder.glob("*_Dense"))):
        raise EmbeddingGemmaError(
            f"{folder / 'modules.json'} lists no modules, but {left[0].name} is there: "
            f"{hub.download_again(folder)}"
        )
    tensors = {}
    for i, place in enumerate(modules.folders):
        path = folder / place / "model.safetensors"
        if not path.is_file():
            hint = (
                "only pytorch_model.bin is there: save the model with safe_serialization=True"
                if (folder / place / "pytorch_model.bin").exists()
                else hub.download_again(folder)
            )
            raise EmbeddingGemmaError(f"{folder} lacks {place}/model.safetensors: {hint}")
        if modules.dense[i] is None:
            raise EmbeddingGemmaError(
                f"{folder} lacks {place}/config.json: {hub.download_again(folder)}"
            )
        for name, tensor in read_headers([path]).items():
            tensors[f"dense.{i}.{name.removeprefix('linear.')}"] = tensor
    return tensors


def _head(modules: Modules | None, layers: int) -> tuple[Dense, ...]:
    """What the layers of the head do besides their products."""
    # Whose head lies with the weights need not have the folders: it is EmbeddingGemma's own then.
    listed = modules.dense[:layers] if modules else (None,) * layers
    return tuple(dense or Dense() for dense in listed)


def _check_head(folder: Path, modules: Modules, layers: int) -> None:
    if len(modules.dense) != layers:
        raise EmbeddingGemmaError(
            f"{folder / 'modules.json'}: expected {layers} Dense, as there are dense weights, "
            f"got {len(modules.dense)}"
        )
    if not modules.normalized:
        warnings.warn(
            f"{folder / 'modules.json'} ends without Normalize: sentence-transformers gives vectors of "
            "other lengths, here they are of unit length",
            stacklevel=3,
        )


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
