"""`mlx-embeddinggemma finetune`: flags to `finetune`."""

import argparse
import sys
from os.path import expanduser

SETTINGS = (  # the fields of `Settings` that are flags of their own name, but for matryoshka
    ("task", str, "NAME", "prompts: retrieval, similarity, classification, clustering, ..., none"),
    ("loss", str, "NAME", "by default what fits the rows"),
    ("epochs", float, "X", "times every row is seen (default: 1)"),
    ("steps", int, "N", "instead of epochs"),
    ("batch_size", int, "N", "rows a step (default: 64)"),
    ("mini_batch_size", int, "N", "texts in memory at a time; the result is the large batch's"),
    ("learning_rate", float, "X", "peak (default: 2e-5, with LoRA 2e-4)"),
    ("warmup", float, "X", "share of the steps (default: 0.1)"),
    ("scale", float, "X", "1 / temperature (default: 20)"),
    ("hardness", str, "NAME", "in_batch_negatives, hard_negatives or all_negatives"),
    ("spread", float, "X", "weight of the spread-out regulariser (default: 0)"),
    ("lora_rank", int, "N", "train corrections of this rank, not the weights"),
    (
        "quantize",
        str,
        "RECIPE",
        "train for the rounding of 4bit, 8bit, mixed, q4_0 or q8_0, or several in turn, fp32 (no "
        "rounding) among them: fp32,4bit",
    ),
    ("quantize_after", float, "X", "share of the steps that learn in floats first (default: 0)"),
    ("max_length", int, "N", "tokens of a text (default: 256)"),
    ("average", int, "N", "write the mean of the last N checkpoints (default: 1)"),
    ("save_every", int, "N", "steps between checkpoints (default: a tenth of the run)"),
    ("mine", int, "N", "find N hard negatives for each pair"),
    ("seed", int, "N", "default: 0"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; each is a keyword of `finetune`."""
    parser.add_argument("--model", required=True, metavar="M", help="'demo', a folder or a hub id")
    parser.add_argument(
        "--train",
        required=True,
        type=expanduser,
        metavar="FILE",
        help="rows: .jsonl, .json, .csv, .tsv or .parquet",
    )
    parser.add_argument(
        "--output", required=True, type=expanduser, metavar="FOLDER", help="the folder to write"
    )
    parser.add_argument("--eval", type=expanduser, metavar="FILE", help="held-out rows")
    parser.add_argument(
        "--corpus", type=expanduser, metavar="FILE", help="passages to mine hard negatives from"
    )
    for name, kind, metavar, help in SETTINGS:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, metavar=metavar, help=help)
    parser.add_argument("--train-table", action="store_true", help="train the vocabulary table too")
    parser.add_argument(
        "--checkpoint-layers", action="store_true", help="less memory, a third more time"
    )
    parser.add_argument(
        "--no-matryoshka", action="store_true", help="train the whole vector only, not its prefixes"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--force", action="store_true", help="replace FOLDER")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from .trainer import finetune

    names = [name for name, *_ in SETTINGS]
    settings = {name: value for name in names if (value := getattr(args, name)) is not None}
    try:
        report = finetune(
            args.model,
            args.train,
            args.output,
            eval=args.eval,
            corpus=args.corpus,
            resume=args.resume,
            force=args.force,
            progress=True,
            train_table=args.train_table,
            checkpoint_layers=args.checkpoint_layers,
            matryoshka=not args.no_matryoshka,
            **settings,
        )
    except KeyboardInterrupt:
        print("mlx-embeddinggemma: stopped: the same command with --resume goes on", file=sys.stderr)
        raise
    first = next(entry for entry in report.log if "loss" in entry)
    print(
        f"{report.output}: {report.steps} steps, {report.seconds:.0f} s, loss {first['loss']:.4f} to "
        f"{report.log[-1]['loss']:.4f}"
    )
    evaluated = [e for e in report.log if any(name.startswith("eval_") for name in e)]
    for name in sorted(n for n in (evaluated[-1] if evaluated else {}) if n.startswith("eval_")):
        label = name.removeprefix("eval_")
        print(f"held-out {label}: {evaluated[0][name]:.4f} to {evaluated[-1][name]:.4f}")
    return 0
