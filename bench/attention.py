"""The ways to compute a layer's attention, in turns: is this package's choice the best one here?

    python -m mlx_embeddinggemma.bench.attention [--dtype bfloat16] [--rounds 9] [--json]

The ways: blocks of so many queries, each beside just the keys it can see, "chosen" those that
`runtime.query_block` chooses; `mx.fast.scaled_dot_product_attention` over the whole text, as MLX likes;
and its fused kernel by force, where it has one for heads of 256. The shapes are EmbeddingGemma's, the
values random, the batches full. On the CPU one core computes its part of the queries, as in the
network, where blocks cost more than they do alone (bench/NOTES.md): the choice leans to fewer.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from mlx_embeddinggemma import runtime, strict_json
from mlx_embeddinggemma.attention import attend, spans
from mlx_embeddinggemma.encoder import DTYPES
from mlx_embeddinggemma.exponential import exp2

from . import identity
from .report import table

HEADS, HEAD_SIZE, RADIUS = 3, 256, 256
LENGTHS, BLOCKS = (64, 128, 256, 512, 1024, 2048), (32, 64, 128, 256, 512)
KINDS = {"sliding": RADIUS, "full": None}


def ways(
    lengths: np.ndarray, L: int, radius: int | None, part: slice, dtype: mx.Dtype
) -> Iterator[tuple[str, Callable[[], mx.array]]]:
    """Every way by its name, all on the same input; those that MLX does not have here are left out."""
    B, scale = len(lengths), HEAD_SIZE**-0.5
    q, k, v = (mx.random.normal((B, L, n, HEAD_SIZE)).astype(dtype) for n in (HEADS, 1, 1))
    q = mx.contiguous(q[:, part])
    mx.eval(q, k, v)
    for block in (*(n for n in BLOCKS if n < q.shape[1]), L):
        seen = spans(lengths, L, radius, part, block)
        yield "whole" if block == L else str(block), partial(attend, q, k, v, seen, scale, exp2)
    yield "chosen", partial(attend, q, k, v, spans(lengths, L, radius, part), scale, exp2)
    (one,) = spans(lengths, L, radius, part, L)
    mask = None if one.mask is None else one.mask[:, :, :, 0].astype(dtype)

    def mlx(force_fused: bool) -> mx.array:
        heads = (x.transpose(0, 2, 1, 3) for x in (q, k[:, one.keys], v[:, one.keys]))
        out = mx.fast.scaled_dot_product_attention(
            *heads, scale=scale, mask=mask, force_fused=force_fused
        )
        return out.transpose(0, 2, 1, 3).reshape(B, q.shape[1], -1)

    yield "MLX's", partial(mlx, False)
    try:
        mx.eval(mlx(True))
    except ValueError:
        return
    yield "fused", partial(mlx, True)


@dataclass(frozen=True)
class Row:
    """One shape: seconds of each way, and how far their results lie apart at most."""

    texts: int
    tokens: int
    radius: int | None
    chosen: int
    samples_s: dict[str, list[float]]
    apart: float


def measure(L: int, radius: int | None, dtype: mx.Dtype, rounds: int) -> Row:
    """All ways in turns, on as many texts of `L` tokens as a batch holds."""
    B = max(1, runtime.batch_tokens() // L)
    lengths, part = np.full(B, L), runtime.parts(B, L)[0]
    chosen = spans(lengths, L, radius, part)[0].queries.stop
    found = dict(ways(lengths, L, radius, part, dtype))
    results = [np.array(way().astype(mx.float32)) for way in found.values()]
    samples: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, way in found.items():
            start = time.perf_counter()
            mx.eval(way())
            samples[name].append(time.perf_counter() - start)
    apart = float(np.max([np.abs(result - results[0]).max() for result in results]))  # NaN stays NaN
    return Row(B, L, radius, chosen, samples, apart)


def show(rows: Sequence[Row], dtype: str) -> str:
    """Milliseconds, medians, in a Markdown table."""
    names = [*map(str, BLOCKS), "whole", "MLX's", "fused", "chosen"]

    def cell(row: Row, name: str) -> str:
        if name not in row.samples_s:
            return ""
        ms = f"{1e3 * statistics.median(row.samples_s[name]):.1f}"
        return f"{ms} ({row.chosen})" if name == "chosen" else ms

    cells = [
        [f"{row.texts} x {row.tokens:,}", "sliding" if row.radius else "full"]
        + [cell(row, name) for name in names]
        for row in rows
    ]
    about = identity.machine()
    return (
        f"{about['chip']}, {about['device']}, {dtype}; milliseconds, medians\n\n"
        f"{table(['texts x tokens', 'layer', *names], cells)}\n\n"
        f"Largest difference between two ways' results: {np.max([row.apart for row in rows]):.1e}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print the raw samples instead")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"expected --rounds of 1 or more, got {args.rounds}")
    runtime.prepare()
    shapes = tqdm([*product(LENGTHS, KINDS.values())], unit=" shapes", leave=False, disable=None)
    try:
        rows = [measure(*shape, DTYPES[args.dtype], args.rounds) for shape in shapes]
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: nothing is kept\n")
    if args.json:
        found = {"machine": identity.machine(), "versions": identity.versions()}
        print(strict_json.dumps(found | {"dtype": args.dtype, "rows": [asdict(row) for row in rows]}))
    else:
        print(show(rows, args.dtype))


if __name__ == "__main__":
    main()
