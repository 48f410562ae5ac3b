"""`mlx-embeddinggemma bench`: flags to `bench`, and its record as tables."""

import argparse
import json
import sys
from pathlib import Path


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
    from mlx_embeddinggemma.errors import EmbeddingGemmaError

    from .record import bench, read, replace
    from .report import Merged, markdown, write

    if args.report:
        if args.report[0] != "report" or len(args.report) < 2:
            raise EmbeddingGemmaError(
                f"expected `bench report RECORD.json ...` or flags, got {' '.join(args.report)}"
            )
        records = [read(path) for path in args.report[1:]]
    else:
        if args.output:
            _make(Path(args.output))
        try:
            options = ("dims", "tasks", "data", "rounds", "output")
            records = [bench(args.model, **{name: getattr(args, name) for name in options})]
        except KeyboardInterrupt:
            if args.output:
                print("\nfinished steps are kept: the same command goes on from here", file=sys.stderr)
            raise
        if args.output:
            replace(Path(args.output) / "record.json", json.dumps(records[0]) + "\n")
            (Path(args.output) / "unfinished.jsonl").unlink(missing_ok=True)
    merged = Merged(records)
    print(json.dumps(records[0]) if args.json else markdown(merged))
    if args.output:
        path = write(merged, args.output)
        if not args.json:
            print(f"\nrecord and report: {path}")
    return 0


def _make(folder: Path) -> None:
    """The output folder, before hours of work that could not be written."""
    from mlx_embeddinggemma.errors import EmbeddingGemmaError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {folder}: {error.strerror}") from None
