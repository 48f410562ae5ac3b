"""Records as one HTML page that needs no network: charts, tables, light, dark, phone and paper."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from mlx_embeddinggemma import strict_json

from .paired import MEASURABLE
from .report import CAVEAT, Merged, headings, memory, samples, throughput

PAGE = Path(__file__).parent / "page.html"


def page(merged: Merged) -> str:
    """The page; its charts are drawn by its own script from the numbers embedded in it."""
    numbers = {
        "machines": headings(merged),
        "dims": merged.dims,
        "measurable": MEASURABLE,
        "caveat": CAVEAT.replace("\\*", "*").replace("*published*", "Published"),
        "tasks": [
            {
                "name": task,
                "metric": merged.tasks[task]["metric"],
                "note": merged.tasks[task]["note"],
                "published": _points(merged.tasks[task]["published"]),
            }
            for task in merged.shared
        ],
        "models": [_model(merged, model) for model in merged.models],
        "differences": [
            {
                "model": model,
                "task": task,
                "dim": dim,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "verdict": found.verdict,
            }
            for model, task, dim, found in merged.differences + merged.mean_differences
        ],
    }
    # A name with "</script>" in it must not end the script.
    embedded = strict_json.dumps(numbers).replace("<", "\\u003c")
    return PAGE.read_text(encoding="utf-8").replace("/*DATA*/", embedded)


def _model(merged: Merged, model: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": model["name"],
        "size_mb": model["size_bytes"] / 2**20,
        "mean": {dim: merged.mean(model, dim) for dim in merged.dims},
        "scores": {
            task: {dim: _points(found["score"]) for dim, found in model["quality"][task].items()}
            for task in merged.shared
            if task in model["quality"]
        },
        "timed": bool(model["speed"]),
    }
    if model["speed"]:
        shown |= {
            "load_s": statistics.median(r["load_s"] for r in model["speed"]),
            "first_vector_s": statistics.median(r["first_vector_s"] for r in model["speed"]),
            "idle_mb": memory(model, "memory_mb", "idle"),
            "peak_mb": memory(model, "memory_mb", "load_peak"),
            "mlx_peak_mb": memory(model, "mlx_mb", "load_peak"),
            "latency": [
                {"tokens": tokens}
                | dict(zip(("p50", "p95"), 1000 * np.percentile(seconds, [50, 95]), strict=True))
                for tokens, seconds in sorted(samples(model, "latency").items())
            ],
            "batches": throughput(model, "batches"),
            "mixed": next(iter(throughput(model).values())),
        }
    return shown


def _points(score: float | None) -> float | None:
    return None if score is None else 100 * score
