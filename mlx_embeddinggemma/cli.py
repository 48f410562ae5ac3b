"""The command line: each subcommand parses flags and calls one function.

Nothing heavy is imported before a subcommand runs: `--help` answers at once. Results go to stdout,
progress and warnings to stderr; exit status 0, 1 (it failed, one line says why), 2 (wrong usage).
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mlx_embeddinggemma import __version__, streams
from mlx_embeddinggemma.errors import EmbeddingGemmaError, missing_backend

DEFAULT_MODEL = "google/embeddinggemma-300m"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    with streams.lasting():
        try:
            return _run(argv)
        except BrokenPipeError:  # the reader of a pipe went away: `... | head`
            return 0
        except EmbeddingGemmaError as error:
            print(f"mlx-embeddinggemma: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            print(f"mlx-embeddinggemma: {place}{error.strerror or error}", file=sys.stderr)
            return 1
        except ImportError as error:
            if (remedy := missing_backend(error)) is None:
                raise
            print(f"mlx-embeddinggemma: {remedy}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("mlx-embeddinggemma: interrupted", file=sys.stderr)
            return 130


def _run(argv: Sequence[str] | None) -> int:
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        args = build_parser().parse_args(argv)
        status = int(args.run(args))
    except SystemExit as done:  # of argparse: help was printed, or the usage was wrong
        status = int(done.code or 0)
    sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; `tests/test_docs.py` reads the README against it."""
    from mlx_embeddinggemma.bench import cli as bench
    from mlx_embeddinggemma.convert import cli as convert
    from mlx_embeddinggemma.finetune import cli as finetune

    parser = argparse.ArgumentParser(
        prog="mlx-embeddinggemma", description="EmbeddingGemma-300m in MLX, on your own machine."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, help: str, arguments: Callable[[argparse.ArgumentParser], None], run: Any
    ) -> None:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        arguments(sub)
        sub.set_defaults(run=run)

    command("embed", "texts to vectors", _embed_arguments, _embed)
    command("search", "rank passages of text files by meaning", _search_arguments, _search)
    command("convert", "make a smaller copy of a checkpoint", convert.add_arguments, convert.run)
    command("bench", "measure speed, memory and quality", bench.add_arguments, bench.run)
    command("finetune", "train a checkpoint on your own pairs", finetune.add_arguments, finetune.run)
    command("verify", "check a checkpoint and this machine", _verify_arguments, _verify)
    return parser


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="M",
        help="'demo', a folder or a hub id (default: %(default)s)",
    )


def _dim_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dim", type=int, metavar="N", help="size of the vectors: 768, 512, 256, 128")


def _embed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="a text a line, or a table: .csv, .tsv, .jsonl, .json, .parquet, also with .gz; '-' is "
        "standard input, a text a line",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="of the table; may be left out where only one holds text"
    )
    _model_argument(parser)
    parser.add_argument("--prompt", metavar="NAME", help="prompt by name, such as query or document")
    _dim_argument(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="-",
        help="FILE.npy, FILE.jsonl or FILE.parquet; '-' is JSON lines on standard output",
    )


def _embed(args: argparse.Namespace) -> int:
    from mlx_embeddinggemma.embed import embed

    embed(
        args.texts,
        input=args.input,
        column=args.column,
        output=args.output,
        model=args.model,
        prompt_name=args.prompt,
        dim=args.dim,
    )
    return 0


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument("paths", nargs="+", metavar="FILE|FOLDER", help="text or Markdown")
    _model_argument(parser)
    _dim_argument(parser)
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def _search(args: argparse.Namespace) -> int:
    from mlx_embeddinggemma.search import print_hits, search

    hits = search(args.query, args.paths, model=args.model, dim=args.dim, top_k=args.top_k)
    print_hits(hits, as_json=args.json)
    return 0


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="'demo', a folder or a hub id")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def _verify(args: argparse.Namespace) -> int:
    from mlx_embeddinggemma.verify import print_checks, verify

    checks = verify(args.model)
    print_checks(checks, as_json=args.json)
    return 0 if all(check.passed is not False for check in checks) else 1


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"mlx-embeddinggemma: warning: {message}", file=sys.stderr)
