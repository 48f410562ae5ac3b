"""What differs from machine to machine, decided in one place."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from math import ceil
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import blas

# Tokens of a batch that are worth a CPU core of their own: fewer are faster through products of
# several threads, which read each weight once. And tokens whose activations fit a core's cache.
FEWEST, MOST = 128, 512
SCORES = 2**16  # of one head that attention computes at a time

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return mx.default_device().type == mx.DeviceType.gpu


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Makes MLX ready on this machine; cheap when already done."""
    if on_gpu():
        # On an M5 and with CUDA MLX multiplies float32 at 10 bits of mantissa, many rows at a time but
        # not one: a text's vector would depend on its batch. MLX reads this at its first product.
        os.environ.setdefault("MLX_ENABLE_TF32", "0")
        # By default MLX keeps freed buffers up to nearly all memory; every new length adds some.
        mx.set_cache_limit(2**30)
    else:
        blas.use_openblas()
        mx.set_cache_limit(2**22)


def keep_freed_memory() -> None:
    """Lets training reuse its arrays' pages: glibc would return them, and the kernel clear them again.

    That was a fifth of a step's time, and saves no memory, since the next step takes as much. On a GPU
    MLX keeps a step's arrays, of which `prepare` lets it keep fewer.
    """
    if on_gpu():
        mx.set_cache_limit(2**31)
    _mallopt(M_MMAP_THRESHOLD, 2**30)
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    _mallopt(M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Has glibc return arrays of 2 MB and more as soon as they are free.

    By default it keeps ever larger ones, in pieces that no other array fits (bench/NOTES.md).
    """
    _mallopt(M_MMAP_THRESHOLD, 2**21)
    _mallopt(M_TRIM_THRESHOLD, 2**21)


def _mallopt(parameter: int, value: int) -> None:
    if sys.platform == "linux" and not on_gpu():
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc, not musl
            libc.mallopt(parameter, value)


def batch_tokens() -> int:
    """Tokens a batch holds by default, padding included: many on a GPU, which wants large products."""
    return 16_384 if on_gpu() else MOST * cores()


def start_cost() -> int:
    """What a batch costs beside its tokens, in tokens, see `batches`.

    On the CPU weights are read, and operations started, once a batch: 50 tokens of a full-size model on
    2 cores, 60 of the demo checkpoint. A CUDA GPU computes many more tokens while operations start.
    """
    return 2048 if on_gpu() and mx.cuda.is_available() else 64


def parts(B: int, L: int) -> list[slice]:
    """The parts of `L` positions that `each` gets, of a batch of `B` texts.

    On the CPU MLX runs all but the matrix products of a stream in one thread: each core takes a part
    of every text, and products keep to one thread, which is set here.
    """
    n = 1 if on_gpu() else max(1, min(cores(), L, B * L // FEWEST))
    blas.set_threads(1 if n > 1 else cores())
    if n > 1:
        n = min(L, n * ceil(B * L / (n * MOST)))
    return [slice(start, stop) for start, stop in pairwise(L * i // n for i in range(n + 1))]


def each(function: Callable[..., Any], *parts: Sequence[Any]) -> list[Any]:
    """`function` of every part (and of what belongs to it), on all cores where there are several."""
    if len(parts[0]) == 1:
        return [function(*(part[0] for part in parts))]
    streams: list[mx.Stream | mx.ThreadLocalStream] = [mx.default_stream(mx.cpu), *_other_streams()]
    results = []
    for i, inputs in enumerate(zip(*parts, strict=True)):
        with mx.stream(streams[i % len(streams)]):
            results.append(function(*inputs))
    return results


def after(done: Sequence[mx.array], x: mx.array) -> mx.array:
    """`x`, for what shall not begin before `done` is there (on the CPU).

    Pieces of one core's work that wait for each other make a narrow graph. In a wide one, of more than
    20 operations that could be next, MLX no longer takes the cores in turns, and one waits.
    """
    return mx.depends([x], list(done))[0] if done and not on_gpu() else x


@cache
def _other_streams() -> list[mx.ThreadLocalStream]:
    """For every core but the first; each Python thread finds its own streams behind them."""
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(cores() - 1)]


def query_block(texts: int, queries: int, keys: int) -> int:
    """Queries of each text that attention takes at a time.

    Small blocks compute fewer scores in vain at the window's edges and keep them in a core's cache;
    large ones are fewer operations to start (bench/NOTES.md).

    Args:
        texts: of the batch.
        queries: of each text in a part.
        keys: that a query sees, about.
    """
    if on_gpu():
        return queries if queries <= 512 else 256
    blocks = max(1, round(texts * queries * keys / SCORES))
    return max(64, ceil(queries / blocks))


def run_batches(
    compute: Callable[[np.ndarray], mx.array], batches: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each batch with what `compute` makes of it; the next one is prepared while it runs."""
    running: tuple[np.ndarray, mx.array] | None = None
    for batch in batches:
        result = compute(batch)
        mx.async_eval(result)
        if running:
            yield running[0], np.array(running[1])
        running = batch, result
    if running:
        yield running[0], np.array(running[1])
