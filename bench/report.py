"""Records as Markdown: every table comes from them."""

import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError

from . import paired
from .paired import MEASURABLE, Difference
from .record import replace

CAVEAT = (
    "*published*: google/embeddinggemma-300m in mteb's results repository. Google used prompts that it "
    "did not disclose for a dozen tasks, so these do not come out of the published prompts with any "
    "implementation; \\* marks files that hold less than mteb's task."
)


class Merged:
    """Several records as one: the models of all, the tasks that they share.

    Args:
        records: at least one. Where machines differ, the models' names say which.

    Raises:
        EmbeddingGemmaError: the records share neither tasks nor speed.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.records = records
        machines = list(dict.fromkeys(_machine(record) for record in records))
        self.models: list[dict[str, Any]] = []
        for i, record in enumerate(records):
            for model in record["models"]:
                mark = chr(ord("A") + machines.index(_machine(record)))
                name = f"{model['name']} ({mark})" if len(machines) > 1 else model["name"]
                if any(name == known["name"] for known in self.models):
                    name = f"{name} [{i + 1}]"
                self.models.append(model | {"name": name})
        self.machines = machines
        self.tasks: dict[str, dict[str, Any]] = {}
        for record in records:
            self.tasks |= record["tasks"]
        scored = [set(model["quality"]) for model in self.models if model["quality"]]
        self.shared = [task for task in self.tasks if all(task in names for names in scored)]
        dims = [scores for model in self.models for scores in model["quality"].values()]
        self.dims = sorted({int(dim) for scores in dims for dim in scores}, reverse=True)
        if not self.shared and not any(model["speed"] for model in self.models):
            raise EmbeddingGemmaError(
                "nothing to compare: the records share no tasks and hold no speed"
            )

    def mean(self, model: dict[str, Any], dim: int) -> float | None:
        """Mean score over the shared tasks, x 100."""
        scores = [model["quality"].get(task, {}).get(str(dim)) for task in self.shared]
        if not scores or None in scores:
            return None
        return 100 * statistics.mean(float(score["score"]) for score in scores if score)

    @cached_property
    def differences(self) -> list[tuple[str, str, int, Difference]]:
        """(model, task, dimension, difference to the first model) where both have items.

        Pairs whose items no longer differ, rounded as they are in the record, have none.
        """
        baseline = self.models[0]
        rows = []
        for model in self.models[1:]:
            for task in self.shared:
                for dim in self.dims:
                    ours, theirs = (
                        m["quality"].get(task, {}).get(str(dim), {}).get("items")
                        for m in (model, baseline)
                    )
                    if ours and theirs and len(ours) == len(theirs):
                        about = self.tasks[task]
                        found = paired.difference(ours, theirs, about["metric"], about["gold"])
                        if found.known:
                            rows.append((model["name"], task, dim, found))
        return rows

    @property
    def mean_differences(self) -> list[tuple[str, str, int, Difference]]:
        """(model, "mean", dimension, mean of the differences) where there are several tasks."""
        found: dict[tuple[str, int], list[Difference]] = {}
        for model, _, dim, one in self.differences:
            found.setdefault((model, dim), []).append(one)
        return [
            (model, "mean", dim, paired.mean(several))
            for (model, dim), several in found.items()
            if len(several) > 1
        ]


def samples(model: dict[str, Any], kind: str) -> dict[int, list[float]]:
    """All rounds' samples of "latency" by tokens, or of "batches" by texts, in seconds."""
    key = {"latency": "tokens", "batches": "texts"}[kind]
    found: dict[int, list[float]] = {}
    for one_round in model["speed"]:
        for measured in one_round[kind]:
            found.setdefault(measured[key], []).extend(measured["samples_s"])
    return found


def throughput(model: dict[str, Any], kind: str = "corpus") -> dict[int, float]:
    """Median tokens a second by number of texts."""
    rates: dict[int, list[float]] = {}
    for one_round in model["speed"]:
        for measured in one_round[kind] if kind == "batches" else [one_round[kind]]:
            rate = (measured["tokens"] / seconds for seconds in measured["samples_s"])
            rates.setdefault(measured["texts"], []).extend(rate)
    return {texts: statistics.median(values) for texts, values in rates.items()}


def memory(model: dict[str, Any], pool: str, when: str) -> float:
    """Megabytes, the largest of the rounds."""
    return max(float(one_round[pool][when]) for one_round in model["speed"])


def markdown(merged: Merged) -> str:
    """Tables of speed, memory, quality and differences, and what they were measured on."""
    parts = headings(merged)
    measured = [model for model in merged.models if model["speed"]]
    if measured:
        parts += ["", _speed_table(measured), "", _latency_table(measured)]
    if merged.shared:
        parts += ["", _quality_table(merged)]
        if any(merged.tasks[task]["published"] for task in merged.shared):
            parts += ["", CAVEAT]
    if differences := _difference_table(merged):
        parts += ["", differences]
    return "\n".join(parts)


def headings(merged: Merged) -> list[str]:
    """What each record was measured on, and with which versions."""
    lines = []
    for record in merged.records:
        mark = ""
        if len(merged.machines) > 1:
            mark = f"{chr(ord('A') + merged.machines.index(_machine(record)))}: "
        lines.append(mark + on_machine(record))
    return lines


def on_machine(record: dict[str, Any]) -> str:
    """Machine, versions, commit and date of a record."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = f", commit {record['commit']}" if record["commit"] else ""
    return f"{_machine(record)}; {versions}{commit}; {record['when']}"


def _machine(record: dict[str, Any]) -> str:
    about = record["machine"]
    power = f", {about['power']}" if about["power"] else ""
    return (
        f"{about['chip']}, {about['cores']} cores, {about['memory_gb']} GB, {about['system']}{power}, "
        f"MLX on the {about['device']}, Python {about['python']}"
    )


def _speed_table(models: Sequence[dict[str, Any]]) -> str:
    sizes = sorted({size for model in models for size in throughput(model, "batches")})
    rows = []
    for model in models:
        batches = throughput(model, "batches")
        rows.append(
            [
                model["name"],
                f"{model['size_bytes'] / 2**20:.1f}",
                f"{statistics.median(r['load_s'] for r in model['speed']):.2f}",
                f"{statistics.median(r['first_vector_s'] for r in model['speed']):.2f}",
                f"{memory(model, 'memory_mb', 'idle'):.0f}",
                f"{memory(model, 'memory_mb', 'load_peak'):.0f}",
                f"{memory(model, 'mlx_mb', 'load_peak'):.0f}",
                *(f"{batches[size]:,.0f}" if size in batches else "" for size in sizes),
                f"{next(iter(throughput(model).values())):,.0f}",
            ]
        )
    heads = ["model", "MB on disk", "load, s", "start to first vector, s", "idle MB", "peak MB"]
    heads += ["MLX's peak MB", *(f"tokens/s x{size}" for size in sizes), "tokens/s mixed"]
    return table(heads, rows)


def _latency_table(models: Sequence[dict[str, Any]]) -> str:
    lengths = sorted({length for model in models for length in samples(model, "latency")})
    rows = []
    for model in models:
        found = samples(model, "latency")
        cells = []
        for length in lengths:
            values = 1000 * np.array(found.get(length, [np.nan]))
            cells.append("{:.1f} / {:.1f}".format(*np.percentile(values, [50, 95])))
        rows.append([model["name"], *cells])
    return table(["model", *(f"{n} tokens, p50 / p95 ms" for n in lengths)], rows)


def _quality_table(merged: Merged) -> str:
    rows = []
    for task in merged.shared:
        about = merged.tasks[task]
        for model in merged.models:
            if task not in model["quality"]:
                continue
            scores = model["quality"][task]
            cells = [
                f"{100 * scores[str(dim)]['score']:.2f}" if str(dim) in scores else ""
                for dim in merged.dims
            ]
            known = f"{100 * about['published']:.2f}" if about["published"] else ""
            known += "\\*" if known and about["note"] else ""
            rows.append(
                [
                    model["name"],
                    f"{task} ({about['metric']})",
                    *cells,
                    known,
                ]
            )
    if len(merged.shared) > 1:
        for model in merged.models:
            means = [merged.mean(model, dim) for dim in merged.dims]
            rows.append([model["name"], "mean", *("" if m is None else f"{m:.2f}" for m in means), ""])
    return table(["model", "task", *map(str, merged.dims), "published"], rows)


def _difference_table(merged: Merged) -> str:
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for model, task, dim, found in merged.differences + merged.mean_differences:
        mark = {"worse": " v", "better": " ^", "no measurable loss": " =", "undecided": ""}
        text = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]{mark[found.verdict]}"
        cells.setdefault((model, task), {})[dim] = text
    if not cells:
        return ""
    rows = [[*key, *(row.get(dim, "") for dim in merged.dims)] for key, row in cells.items()]
    return (
        f"Difference from {merged.models[0]['name']}, points of 100, with a bootstrap 95 % interval "
        "over queries, pairs or texts. v: worse; ^: better; =: no measurable loss (over "
        f"{MEASURABLE} is ruled out); no mark: these data cannot tell.\n\n"
        + table(["model", "task", *map(str, merged.dims)], rows)
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal too."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    texts = {"", "model", "task", "job", "engine"}

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


def write(merged: Merged, folder: str | Path) -> Path:
    """Writes report.md and report.html, and returns the folder."""
    from .html import page

    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace(path / "report.md", f"# Benchmark\n\n{markdown(merged)}\n")
        replace(path / "report.html", page(merged))
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {path}: {error.strerror}") from None
    return path
