"""`mlx-embeddinggemma bench`: flags to `bench`, and its record as a table."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; each is a keyword of `bench`."""
    parser.add_argument(
        "--model", nargs="+", default=["demo"], metavar="M", help="'demo', folders or hub ids"
    )
    parser.add_argument("--dims", nargs="+", type=int, metavar="N", help="default: all four")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all that are found")
    parser.add_argument(
        "--data", metavar="FOLDER", help="more task files: sts/NAME/test.default.jsonl inside"
    )
    parser.add_argument("--output", metavar="FOLDER", help="write record.json and report.md there")
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from .record import bench
    from .report import markdown, write

    record = bench(args.model, dims=args.dims, tasks=args.tasks, data=args.data)
    print(json.dumps(record, indent=1) if args.json else markdown(record))
    if args.output:
        path = write(record, args.output)
        if not args.json:
            print(f"\nrecord and report: {path}")
    return 0
