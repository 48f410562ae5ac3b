"""`mlx-embeddinggemma bench`: flags to `bench`, and its record as tables."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; each is a keyword of `bench`."""
    parser.add_argument(
        "report", nargs="*", metavar="report RECORD.json", help="compare records instead of measuring"
    )
    parser.add_argument(
        "--model", nargs="+", default=["demo"], metavar="M", help="'demo', folders or hub ids"
    )
    parser.add_argument("--dims", nargs="+", type=int, metavar="N", help="default: all that there are")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="names, or presets: quick (bundled); subset, english, multilingual (these, as any task of "
        "mteb, need the extra mteb and a network)",
    )
    parser.add_argument("--data", metavar="FOLDER", help="more task files; bench/tasks.py says how")
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="of speed and memory (default: %(default)s)"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="write record and report there; go on where a run stopped"
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of the tables")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from mlx_embeddinggemma import given, strict_json
    from mlx_embeddinggemma.errors import EmbeddingGemmaError

    from .record import bench, read, replace

    output = given.path("--output", args.output) if args.output else None
    if args.report:
        if args.report[0] != "report" or len(args.report) < 2:
            raise EmbeddingGemmaError(
                f"expected `bench report RECORD.json ...` or flags, got {given.shown(args.report)}"
            )
        records = [read(path) for path in args.report[1:]]
    else:
        if output:
            _make(output)
        try:
            options = ("dims", "tasks", "data", "rounds")
            chosen = {name: getattr(args, name) for name in options}
            records = [bench(args.model, output=output, **chosen)]
        except KeyboardInterrupt:
            if output:
                print("\nfinished steps are kept: the same command goes on from here", file=sys.stderr)
            raise
        if output:
            replace(output / "record.json", strict_json.dumps(records[0]) + "\n")
            (output / "unfinished.jsonl").unlink(missing_ok=True)
    _show(records, args.report[1:], output, as_json=args.json)
    return 0


def _show(
    records: Sequence[dict[str, Any]], paths: Sequence[str], output: Path | None, *, as_json: bool
) -> None:
    """Prints the records and writes their report; what was read from `paths` may be anything."""
    from mlx_embeddinggemma import strict_json
    from mlx_embeddinggemma.errors import EmbeddingGemmaError

    from .report import Merged, markdown, write

    try:
        merged = Merged(records)
        print(strict_json.dumps(records[0]) if as_json else markdown(merged))
        if output:
            write(merged, output)
    except EmbeddingGemmaError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if not paths:
            raise
        listed = ", ".join(paths)
        raise EmbeddingGemmaError(
            f"expected whole records of `bench`, as it wrote them, got {listed:.200}: "
            f"{type(error).__name__} {error!s:.80}"
        ) from error
    if output and not as_json:
        print(f"\nrecord and report: {output}")


def _make(folder: Path) -> None:
    """The output folder, before hours of work that could not be written."""
    from mlx_embeddinggemma.errors import EmbeddingGemmaError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {folder}: {error.strerror}") from None
