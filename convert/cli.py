"""`mlx-embeddinggemma convert`: flags to `convert`, and its report as tables."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conversion import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; each is a keyword of `convert`."""
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", help="'demo', a folder, a hub id or a GGUF file"
    )
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="the folder to write")
    parser.add_argument(
        "--recipe",
        default="4bit",
        metavar="NAME",
        help="of --list, or a .toml file (default: 4bit)",
    )
    parser.add_argument(
        "--group-size", type=int, metavar="N", help="weights that share a scale: 32, 64 or 128"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="of floats and scales (default: bfloat16)"
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it is a checkpoint")
    parser.add_argument("--dense-from", metavar="M", help="the dense head of a GGUF without one")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer files for a GGUF")
    parser.add_argument(
        "--min-cosine", type=float, metavar="X", help="fail below this mean cosine to the source"
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="texts for 4bit-tuned, one a line (default: bundled)"
    )
    parser.add_argument("--upload-repo", metavar="USER/NAME", help="then put it on the hub")
    parser.add_argument("--dry-run", action="store_true", help="list what would be written")
    parser.add_argument("--list", action="store_true", help="list the recipes")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if args.list:
        from .recipes import RECIPES

        _print_table(("recipe", ""), [(r.name, r.description) for r in RECIPES.values()])
        return 0
    if args.output is None:
        args.usage_error("expected SOURCE and OUTPUT, or --list")
    from .conversion import convert

    report = convert(
        args.source,
        args.output,
        recipe=args.recipe,
        group_size=args.group_size,
        dtype=args.dtype,
        force=args.force,
        revision=args.revision,
        dense_from=args.dense_from,
        tokenizer=args.tokenizer,
        min_cosine=args.min_cosine,
        calibration=args.calibration,
        upload_repo=args.upload_repo,
        dry_run=args.dry_run,
        progress=True,
    )
    for note in report.notes:
        print(f"mlx-embeddinggemma: note: {note}", file=sys.stderr)
    if args.json:
        from .card import as_json

        print(as_json(asdict(report)), end="")
    else:
        _print_report(report, dry_run=args.dry_run)
    return 0


def _print_report(report: "Report", *, dry_run: bool) -> None:
    if dry_run:
        _print_table(
            ("tensor", "dtype", "shape", "bytes"),
            [
                (t["name"], t["dtype"], "x".join(map(str, t["shape"])), f"{t['bytes']:,}")
                for t in report.tensors
            ],
        )
        print()
    _print_table(
        ("part", "weights", "bits", "MB"),
        [(p["part"], f"{p['weights']:,}", f"{p['bits']:.2f}", f"{p['MB']:.1f}") for p in report.parts],
    )
    if dry_run:
        return
    print()
    _print_table(
        ("dimension", "mean cosine", "1st percentile", "worst", "top-10 kept"),
        [(str(dim), *value.cells()) for dim, value in report.fidelity.items()],
    )
    seconds, peak = f"{report.seconds:.1f} s", f"peak {report.peak_mb:.0f} MB"
    print(f"\n{report.output}: {report.recipe}, {seconds}, {peak}")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
