"""Checkpoints of a run: whole or absent, and all that continuing bit for bit needs.

Batches, their order and every drawn number are functions of the seed and the step, so the state is the
step, what learned, and the optimiser's moments.
"""

import shutil
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_embeddinggemma import strict_json
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.folders import new_folder
from mlx_embeddinggemma.given import shown
from mlx_embeddinggemma.json_files import read_json


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())


def step_of(checkpoint: Path) -> int:
    """Steps done when it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def save(folder: Path, step: int, parameters: Any, optimizer: Any) -> Path:
    """Writes a checkpoint."""
    path = folder / f"step-{step:07}"
    with new_folder(path, replace=True) as partial:
        _save(partial / "parameters.safetensors", parameters)
        _save(partial / "optimizer.safetensors", optimizer)
    return path


def remove(path: Path) -> None:
    """Removes a checkpoint, or a finished run's folder."""
    shutil.rmtree(path)


def load(checkpoint: Path) -> tuple[Any, Any]:
    """What learned, and the optimiser's state."""
    return _load(checkpoint / "parameters.safetensors"), _load(checkpoint / "optimizer.safetensors")


def load_parameters(checkpoint: Path) -> Any:
    """What learned."""
    return _load(checkpoint / "parameters.safetensors")


def check_alike(checkpoint: Path, loaded: Any, expected: Any) -> None:
    """Refuses what was loaded where its names, shapes or dtypes are not the expected ones.

    Raises:
        EmbeddingGemmaError: it is of another network.
    """
    if _shapes(loaded) != _shapes(expected):
        raise EmbeddingGemmaError(
            f"{checkpoint} is of another network than this run's: remove {checkpoint.parent}"
        )


def _shapes(tree: Any) -> dict[str, Any]:
    arrays = cast(list[tuple[str, mx.array]], tree_flatten(tree))
    return {name: (array.shape, array.dtype) for name, array in arrays}


def _save(path: Path, tree: Any) -> None:
    mx.save_safetensors(str(path), dict(tree_flatten(tree)))


def _load(path: Path) -> Any:
    try:
        arrays = cast(dict[str, mx.array], mx.load(str(path)))
        mx.eval(arrays)  # now: the file may be gone when they are used
    except (RuntimeError, ValueError) as error:
        raise EmbeddingGemmaError(f"cannot read {path}: {error!s:.200}; remove its folder") from None
    if not all(mx.isfinite(array).all().item() for array in arrays.values()):
        raise EmbeddingGemmaError(f"{path} holds NaN or infinite numbers; remove its folder")
    return tree_unflatten(list(arrays.items()))


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Records how a run was started.

    Raises:
        EmbeddingGemmaError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(
            strict_json.dumps(settings, indent=2) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {folder}: {error.strerror}") from None


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses to continue a run with other settings: it would be neither run.

    Raises:
        EmbeddingGemmaError: names what differs.
    """
    recorded = read_json(folder / "settings.json")
    if not isinstance(recorded, dict):
        raise EmbeddingGemmaError(f"{folder / 'settings.json'}: expected a JSON object")
    differing = [
        f"{name} {shown(recorded.get(name))}, now {shown(value)}"
        for name, value in settings.items()
        # Lowering the rate is the way on after a loss of NaN.
        if recorded.get(name) != value and name != "learning_rate"
    ]
    if differing:
        raise EmbeddingGemmaError(
            f"{folder} was started with other settings: {'; '.join(differing)}: give the same ones to "
            "resume, or remove the folder to start anew"
        )
