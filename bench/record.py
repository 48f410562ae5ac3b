"""The record: everything a run saw, with raw samples, as one JSON value."""

import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlx_embeddinggemma import EmbeddingGemma, __version__, hub, runtime
from mlx_embeddinggemma.errors import EmbeddingGemmaError

from . import speed
from .scores import score
from .tasks import load as load_tasks

SCHEMA = 1


def bench(
    models: Sequence[str],
    *,
    dims: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    data: str | Path | None = None,
) -> dict[str, Any]:
    """Measures models one after the other.

    Args:
        models: "demo", folders or hub ids.
        dims: dimensions to score, by default all that the first model has.
        tasks: names of tasks, by default all; see `load` in tasks.py.
        data: folder with more task files.

    Returns:
        {"schema", "machine", "versions", "settings", "models": [{"name", "size_mb", "speed",
        "scores": {task: {dim: score}}}]}; times in seconds, sizes in 2^20 bytes.

    Raises:
        EmbeddingGemmaError: a model does not load or has not a dimension asked for, or an unknown
            task.
    """
    loaded = load_tasks(tasks, data)
    results = []
    with tqdm(total=len(models) * (1 + len(loaded)), unit=" steps", disable=None) as bar:
        for name in models:
            bar.set_description(f"{name}: speed and memory")
            folder = hub.find(name)
            result: dict[str, Any] = {
                "name": name,
                "size_mb": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20,
                "speed": speed.measure(name),
                "scores": {},
            }
            bar.update()
            model = EmbeddingGemma(name)
            wanted = list(dims or model.dimensions)
            if unknown := set(wanted) - set(model.dimensions):
                raise EmbeddingGemmaError(
                    f"{name} has dimensions {', '.join(map(str, model.dimensions))}, "
                    f"not {', '.join(map(str, sorted(unknown)))}"
                )
            for task in loaded:
                bar.set_description(f"{name}: {task.name}")
                scores = score(model, task, wanted)
                result["scores"][task.name] = {str(dim): value for dim, value in scores.items()}
                bar.update()
            results.append(result)
    return {
        "schema": SCHEMA,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": {"mlx-embeddinggemma": __version__}
        | {name: metadata.version(name) for name in ("mlx", "numpy")},
        "metrics": {task.name: task.metric for task in loaded},
        "models": results,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    chip = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        chip = named[0].partition(": ")[2] if named else chip
    elif platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        chip = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or chip
    return {
        "chip": chip,
        "cores": runtime.cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "device": "GPU" if runtime.on_gpu() else "CPU",
    }
