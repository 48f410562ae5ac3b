"""A record as Markdown tables."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError


def markdown(record: dict[str, Any]) -> str:
    """One table of speed and memory, one of quality, and what they were measured on."""
    models = record["models"]
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lengths = list(models[0]["speed"]["latency_s"])
    speed_rows = []
    for model in models:
        speed = model["speed"]
        corpus = speed["corpus"]
        medians = (statistics.median(speed["latency_s"][n]) * 1000 for n in lengths)
        speed_rows.append(
            [
                model["name"],
                f"{model['size_mb']:.1f}",
                f"{speed['first_vector_s']:.2f}",
                *(f"{ms:.1f}" for ms in medians),
                f"{corpus['tokens'] / corpus['seconds']:,.0f}",
                f"{speed['peak_mb']['under_load']:.0f}",
            ]
        )
    latency_heads = [f"{n} tokens, ms" for n in lengths]
    heads = [
        "model",
        "MB on disk",
        "start to first vector, s",
        *latency_heads,
        "tokens/s",
        "peak MB",
    ]
    dims = list(next(iter(models[0]["scores"].values())))
    score_rows = [
        [model["name"], f"{task} ({record['metrics'][task]})"]
        + [f"{100 * scores[dim]:.2f}" for dim in dims]
        for task in record["metrics"]
        for model in models
        for scores in [model["scores"][task]]
    ]
    return "\n".join(
        [
            f"{machine['chip']}, {machine['cores']} cores, {machine['system']}, MLX on the "
            f"{machine['device']}; Python {machine['python']}, {versions}; {record['when']}",
            "",
            table(heads, speed_rows),
            "",
            table(["model", "task", *dims], score_rows),
        ]
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal too."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    texts = {"model", "task"}

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if head in texts else cell.rjust(width)
            for cell, width, head in zip(cells, widths, heads, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = (
        "-" * width if head in texts else "-" * (width - 1) + ":"
        for width, head in zip(widths, heads, strict=True)
    )
    return "\n".join([line(heads), f"| {' | '.join(rule)} |", *map(line, rows)])


def write(record: dict[str, Any], folder: str | Path) -> Path:
    """Writes record.json and report.md, and returns the folder."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        (path / "report.md").write_text(f"# Benchmark\n\n{markdown(record)}\n")
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {path}: {error.strerror}") from None
    return path
