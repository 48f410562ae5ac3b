"""The README's tables, generated from the committed records that its markers name.

    python -m mlx_embeddinggemma.bench.readme [README.md]        (`make readme`)

    <!-- generated: quality results/demo/record.json STSBenchmark-captions XQuADRetrieval-en -->
    <!-- end -->
    <!-- generated: engines results/compare/linux.json -->
    <!-- end -->

What stands between the two lines is replaced. Paths are relative to the file; `quality` is a record of
`bench`, with the tasks to show, `engines` one of bench/compare.py.
"""

import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError

from . import compare, record
from .report import Merged, headings, on_machine, table

SECTION = re.compile(r"(<!-- generated: (\S+) (\S+)(.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def regenerated(text: str, root: Path) -> str:
    """A Markdown text with every generated section made anew.

    Raises:
        EmbeddingGemmaError: a marker names no known table, or a record that cannot be read.
    """

    def section(found: re.Match[str]) -> str:
        begin, kind, path, rest, end = found.groups()
        if kind == "quality":
            made = quality(record.read(root / path), rest.split())
        elif kind == "engines":
            made = engines(record.read(root / path, compare.SCHEMA))
        else:
            raise EmbeddingGemmaError(f"expected a marker of `quality` or `engines`, got {kind!r}")
        return f"{begin}{made}\n{end}"

    return SECTION.sub(section, text)


def quality(one: dict[str, Any], tasks: Sequence[str]) -> str:
    """Size and scores of each model at each dimension, and what the intervals of all tasks say.

    Raises:
        EmbeddingGemmaError: the record lacks one of the tasks.
    """
    merged = Merged([one])
    if missing := set(tasks) - set(merged.shared):
        raise EmbeddingGemmaError(f"the record has no task {', '.join(sorted(missing))}")
    heads = ["model", "MB"]
    for task in tasks:
        first, *rest = merged.dims
        heads += [f"{task} ({merged.tasks[task]['metric']}) {first}", *map(str, rest)]
    rows = []
    for model in merged.models:
        scores = [model["quality"][task][str(dim)]["score"] for task in tasks for dim in merged.dims]
        size = f"{model['size_bytes'] / 2**20:.1f}"
        rows.append([model["name"], size, *(f"{100 * score:.2f}" for score in scores)])
    parts = [*headings(merged), "", table(heads, rows)]
    if found := [difference for *_, difference in merged.differences]:
        verdicts = [difference.verdict for difference in found]
        parts += [
            "",
            f"Of the {len(found)} differences to {merged.models[0]['name']} in all of the record's "
            f"{len(merged.shared)} tasks, by 95 % interval: {verdicts.count('worse')} worse, "
            f"{verdicts.count('better')} better, {verdicts.count('no measurable loss')} without a "
            f"measurable loss, {verdicts.count('undecided')} undecided.",
        ]
    return "\n".join(parts)


def engines(one: dict[str, Any]) -> str:
    """Engines side by side: times, memory, start, and the worst cosine to the first one's vectors."""
    contenders = one["contenders"]
    rows = []
    for job, tokens in one["tokens"].items():
        medians = [statistics.median(c["samples_s"][job]) for c in contenders]
        unit, factor, places = ("s", 1, 1) if min(medians) >= 1 else ("ms", 1000, 0)
        cells = [f"{factor * m:,.{places}f} ({m / medians[0]:.2f} x)" for m in medians]
        about = job if job.endswith(" tokens") else f"{job} ({tokens:,} tokens)"
        rows.append([f"{about}, {unit}", *cells])
    rows.append(["peak memory, MB", *(compare.number(c["peak_mb"], 0) for c in contenders)])
    rows.append(
        ["start to first vector, s", *(compare.number(c["cold_start_s"], 1) for c in contenders)]
    )
    cosines = [f"{min(c['worst_cosine'].values()):.7f}" for c in contenders[1:]]
    rows.append(["worst cosine to the first", "", *cosines])
    names = [f"{c['engine']} {c['version'] or ''}: {c['model']}" for c in contenders]
    return (
        f"{on_machine(one)}. {one['threads']} threads each, {one['rounds']} rounds in turns, "
        f"{one['pause_s']:g} s of pause before each; medians, and how many times the first's.\n\n"
        + table(["", *names], rows)
    )


def main() -> None:
    """Rewrites the file."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    try:
        record.replace(path, regenerated(path.read_text(encoding="utf-8"), path.parent))
    except EmbeddingGemmaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
