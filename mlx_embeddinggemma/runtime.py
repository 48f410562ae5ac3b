"""What differs from machine to machine, decided in one place.

What is set for the whole process, once, when the first model is loaded, and only where nobody else
chose: MLX's cache limit (1 GiB on a GPU, 4 MiB on the CPU); MLX_ENABLE_TF32=0 on a GPU; OpenBLAS's
number of threads, of the copy that only MLX uses, before each batch; and for packed weights on Linux's
CPUs glibc's thresholds from which it returns memory. MLX_EMBEDDINGGEMMA_LEAVE_PROCESS_ALONE=1 keeps all
but OpenBLAS's as they are. Building a graph sets nothing.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import ceil
from typing import Any

import mlx.core as mx

from mlx_embeddinggemma import blas

# Tokens of a batch that are worth a CPU core of their own: fewer are faster through products of
# several threads, which read each weight once. And tokens whose activations fit a core's cache.
FEWEST, MOST = 128, 512
SCORES = 2**16  # of one head that attention computes at a time

LEAVE_ALONE = "MLX_EMBEDDINGGEMMA_LEAVE_PROCESS_ALONE"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h

_prepared = False
_cache_limit: int | None = None  # that was set here


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return mx.default_device().type == mx.DeviceType.gpu


def cores() -> int:
    """CPU cores that this process may use.

    Those its affinity allows, and no more than OMP_NUM_THREADS or OPENBLAS_NUM_THREADS name: so pools
    of processes (joblib's, PyTorch's) tell each of them its share.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    named = (os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"))
    return min([allowed, *(int(n) for n in named if n.isdecimal() and int(n) > 0)])


def prepare() -> None:
    """Makes MLX ready on this machine; done once a process, see `LEAVE_ALONE`."""
    global _prepared
    if _prepared:
        return
    if not on_gpu():
        blas.use_openblas()
        _limit_cache(2**22)
        _prepared = True
        return
    # On an M5 and with CUDA MLX multiplies float32 at 10 bits of mantissa, many rows at a time but
    # not one: a text's vector would depend on its batch. MLX reads this at its first product.
    if not left_alone():
        os.environ.setdefault("MLX_ENABLE_TF32", "0")
    # By default MLX keeps freed buffers up to nearly all memory; every new length adds some.
    _limit_cache(2**30)
    _prepared = True


def left_alone() -> bool:
    """Whether the user wants the process's settings left as they are, see `LEAVE_ALONE`."""
    return os.environ.get(LEAVE_ALONE, "") not in ("", "0")


def _limit_cache(limit: int) -> None:
    """Bounds the memory of freed arrays that MLX keeps, unless the program chose a bound itself."""
    global _cache_limit
    if left_alone() or (_is_fork() and not on_gpu()):
        return
    before = mx.set_cache_limit(limit)
    if before in (_cache_limit, _default_cache_limit(before)):
        _cache_limit = limit
    else:
        mx.set_cache_limit(before)


def _is_fork() -> bool:
    """Whether this process was forked: MLX would wait for its parent's streams, which it has not."""
    process = sys.modules.get("multiprocessing.process")
    by_multiprocessing = process and type(process.current_process()).__name__ == "ForkProcess"
    return bool(by_multiprocessing) or (
        # Python keeps what the main thread was called in the parent; Linux calls it as the process.
        sys.platform == "linux" and threading.main_thread().native_id != os.getpid()
    )


def _default_cache_limit(now: int) -> int:
    """MLX's own: on the CPU 32 MiB, on a GPU its limit of all memory."""
    if not on_gpu():
        return 2**25
    limit = mx.set_memory_limit(now)  # there is no way to ask, but the answer of a change
    mx.set_memory_limit(limit)
    return limit


def prepare_training() -> None:
    """Lets training reuse its arrays' pages, and keeps products to one thread.

    glibc would return the pages, and the kernel clear them again: that was a fifth of a step's time,
    and saves no memory, since the next step takes as much. On a GPU MLX keeps a step's arrays, of
    which `prepare` lets it keep fewer. A step's texts are parted among the cores, each with products
    of its own.
    """
    prepare()
    blas.set_threads(1)
    if on_gpu():
        _limit_cache(2**31)
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
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform == "linux" and not on_gpu() and not chosen and not left_alone():
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
    of every text, and products keep to one thread (`product_threads`).
    """
    n = _parallel(B, L)
    if n > 1:
        n = min(L, n * ceil(B * L / (n * MOST)))
    return [slice(start, stop) for start, stop in pairwise(L * i // n for i in range(n + 1))]


def product_threads(B: int, L: int) -> int:
    """Threads that a matrix product of `B` texts of `L` tokens may use.

    One where each core computes its part of the texts, else as many as there are cores.
    """
    return 1 if _parallel(B, L) > 1 else cores()


def _parallel(B: int, L: int) -> int:
    """Parts of a batch that are computed at a time."""
    return 1 if on_gpu() else max(1, min(cores(), L, B * L // FEWEST))


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
