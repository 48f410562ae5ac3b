"""modules.json: what sentence-transformers does with a text, step by step.

All of it is done here as it is done there, or refused by name: Transformer, Pooling (the mean), then
any of Dense, Normalize and Dropout. A step that were skipped would leave other vectors.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.head import ACTIVATIONS, Dense
from mlx_embeddinggemma.json_files import read_json, read_object, write_json

# Where its versions keep their modules: sentence_transformers.models.Dense until 5.3, and since then
# sentence_transformers.base.modules.dense.Dense.
TYPE = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)(?:\.\w+)*\.(\w+)"
)
AFTER_POOLING = ("Dense", "Normalize", "Dropout")
OLD_TYPE = "sentence_transformers.models."  # which every version reads
TORCH = "torch.nn.modules.{}.{}"
OLD_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
ALL_OLD_MODES = {f"pooling_mode_{mode}" for mode in (*OLD_MODES, "weightedmean_tokens")}


@dataclass(frozen=True)
class Modules:
    """What modules.json lists, checked.

    Attributes:
        folders: of the Dense modules, in order.
        dense: what each of them does; None where the folder does not say.
        paths: of all modules but the Transformer.
        normalized: whether the vectors end up at unit length.
    """

    folders: tuple[str, ...]
    dense: tuple[Dense | None, ...]
    paths: tuple[str, ...]
    normalized: bool


def refuse_adapter(folder: Path) -> None:
    """Refuses a folder of PEFT's, with or without the weights that its corrections belong to."""
    if (folder / "adapter_config.json").exists():
        raise EmbeddingGemmaError(
            f"{folder} holds an adapter (adapter_config.json), whose corrections are not added to the "
            "weights here: load it with peft, call merge_and_unload() and save what that gives"
        )


def read_modules(folder: Path) -> Modules | None:
    """What modules.json of a checkpoint lists, None without one.

    Raises:
        EmbeddingGemmaError: a module or a setting that is not computed here, by type and path.
    """
    path = folder / "modules.json"
    if not path.exists():
        return None
    kinds = [(_kind(path, entry), entry["path"]) for entry in _entries(path)]
    if kinds and (
        [kind for kind, _ in kinds[:2]] != ["Transformer", "Pooling"]
        or any(kind not in AFTER_POOLING for kind, _ in kinds[2:])
    ):
        listed = ", ".join(kind for kind, _ in kinds[:12])
        raise EmbeddingGemmaError(
            f"{path}: expected Transformer, Pooling, then {', '.join(AFTER_POOLING)}, got {listed}"
        )
    if kinds and kinds[0][1] not in ("", "."):
        raise EmbeddingGemmaError(
            f"{path}: expected the Transformer in the folder itself, got path {kinds[0][1]!r:.80}: "
            "load it in sentence-transformers and save it again"
        )
    for _, place in kinds[1:2]:
        _check_pooling(folder / place / "config.json")
    dense, unit_input = [], False
    for kind, place in kinds[2:]:
        config = folder / place / "config.json"
        if kind == "Dense":
            dense.append(_dense(config, unit_input) if config.exists() else None)
            unit_input = False
        elif kind == "Normalize":
            _check_names(config, read_object(config, optional=True), "Normalize")
            unit_input = True
    return Modules(
        folders=tuple(place for kind, place in kinds if kind == "Dense"),
        dense=tuple(dense),
        paths=tuple(place for _, place in kinds[1:]),
        normalized=unit_input or not kinds,
    )


def write_modules(folder: Path, sizes: Sequence[int], head: Sequence[Dense]) -> list[str]:
    """Writes modules.json and the modules' settings, as sentence-transformers reads them.

    Args:
        folder: of the checkpoint.
        sizes: along the head.
        head: what each of its layers does.

    Returns:
        The folders of the Dense modules, for their weights.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in OLD_MODES}
    size = {"word_embedding_dimension": sizes[0]}
    write_json(folder / "1_Pooling" / "config.json", size | pooling | {"include_prompt": True})
    folders = []
    for dense, inputs, outputs in zip(head, sizes[:-1], sizes[1:], strict=True):
        if dense.unit_input:
            modules.append((f"{len(modules)}_Normalize", "Normalize"))
        name = f"{len(modules)}_Dense"
        modules.append((name, "Dense"))
        folders.append(name)
        file = "linear" if dense.activation == "Identity" else "activation"
        settings = {
            "in_features": inputs,
            "out_features": outputs,
            "bias": dense.bias,
            "activation_function": TORCH.format(file, dense.activation),
        }
        write_json(folder / name / "config.json", settings)
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": OLD_TYPE + kind}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    return folders


def _entries(path: Path) -> list[dict[str, str]]:
    modules = read_json(path)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str)
        for m in modules
    ):
        raise EmbeddingGemmaError(
            f"{path}: expected a list of modules with type and path, got {modules!r:.80}"
        )
    for module in modules:
        place = Path(module["path"])
        if place.is_absolute() or ".." in place.parts or "\0" in module["path"]:
            raise EmbeddingGemmaError(
                f"{path}: expected paths inside the folder, got {module['path']!r:.80}"
            )
    return modules


def _kind(path: Path, module: Mapping[str, str]) -> str:
    match = TYPE.fullmatch(module["type"])
    kind = match[1] if match else ""
    if kind not in ("Transformer", "Pooling", *AFTER_POOLING):
        raise EmbeddingGemmaError(
            f"{path}: {module['type'][:80]} at {module['path'][:80]!r} is not computed here; expected "
            f"Transformer, Pooling, {', '.join(AFTER_POOLING)}: use sentence-transformers"
        )
    return kind


def _check_pooling(path: Path) -> None:
    """Refuses a fine-tune that pools otherwise: the network takes the mean over all tokens."""
    # mlx-embeddings copies modules.json without the folders it lists: the mean, as the model's own.
    settings = read_object(path, optional=True)
    size = {"embedding_dimension", "word_embedding_dimension"}
    _check_keys(path, settings, {"pooling_mode", "include_prompt"} | ALL_OLD_MODES | size)
    # What counts as true is what Python takes for it, as there: 1 and "false" do.
    marked = [key for key in sorted(ALL_OLD_MODES) if settings.get(key)]
    # Newer files name the mode; older ones have a key for each.
    mode = settings.get("pooling_mode", marked or "mean")
    prompt = settings.get("include_prompt", True)
    if mode not in ("mean", ["mean"], ["pooling_mode_mean_tokens"]) or not prompt:
        raise EmbeddingGemmaError(
            f"{path}: expected the mean over all tokens, the prompt's included, got "
            f"{mode!r:.120} with include_prompt {prompt!r:.20}: load it in sentence-transformers"
        )


def _dense(path: Path, unit_input: bool) -> Dense:
    settings = read_object(path)
    known = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
    _check_keys(path, settings, known | {"module_input_name", "module_output_name"})
    _check_names(path, settings, "Dense")
    if settings.get("use_residual"):
        raise EmbeddingGemmaError(
            f"{path}: a Dense with use_residual {settings['use_residual']!r:.20} is not computed here: "
            "use sentence-transformers"
        )
    # sentence-transformers' defaults are a Tanh and a bias, not what EmbeddingGemma's own files say.
    name = settings.get("activation_function", TORCH.format("activation", "Tanh"))
    activation = name.rpartition(".")[2] if isinstance(name, str) else ""
    if activation not in ACTIVATIONS or not name.startswith("torch.nn."):
        raise EmbeddingGemmaError(
            f"{path}: a Dense with activation {name!r:.80} is not computed here; expected "
            f"torch.nn's {', '.join(ACTIVATIONS)}: use sentence-transformers"
        )
    return Dense(activation, bool(settings.get("bias", True)), unit_input)


def _check_names(path: Path, settings: Mapping[str, Any], kind: str) -> None:
    """Refuses a module that works on something else than the text's vector."""
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, "sentence_embedding"):
            raise EmbeddingGemmaError(
                f"{path}: expected {kind} to have {key} 'sentence_embedding', got {settings[key]!r:.80}"
            )


def _check_keys(path: Path, settings: Mapping[str, Any], known: set[str]) -> None:
    if strange := sorted(key for key, value in settings.items() if value and key not in known):
        raise EmbeddingGemmaError(
            f"{path}: {', '.join(strange)[:80]} is not known here, and may change vectors: "
            "use sentence-transformers"
        )
