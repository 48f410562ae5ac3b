"""What differs from machine to machine, decided in one place."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import blas


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return mx.default_device().type == mx.DeviceType.gpu


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Makes MLX ready on this machine; cheap when already done."""
    if on_gpu():
        # By default MLX keeps freed buffers up to nearly all memory; every new length adds some.
        mx.set_cache_limit(2**30)
    else:
        blas.use_openblas()
        mx.set_cache_limit(2**26)


def batch_tokens(total: int) -> int:
    """Tokens a batch holds by default, padding included, when there are `total` in all.

    A GPU wants large products. On the CPU a batch should stay in its core's cache, where MLX's
    element-wise work is twice as fast, and there should be one for each core.
    """
    return 16_384 if on_gpu() else max(64, min(512, total // cores()))


def query_block(length: int) -> int:
    """Queries that attention takes at a time in a text of `length` tokens.

    Small blocks compute fewer scores in vain at the window's edges; large ones are fewer products
    to start. On the CPU a block's scores should stay in its core's cache as well.
    """
    one_block, block = (512, 256) if on_gpu() else (128, 64)
    return length if length <= one_block else block


def run_batches(
    compute: Callable[[np.ndarray], mx.array], batches: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each batch with what `compute` makes of it.

    On a GPU the next batch is prepared while this one runs. On the CPU, where MLX runs everything
    but the matrix products in one thread, each core gets batches of its own.
    """
    if on_gpu():
        waiting: list[tuple[np.ndarray, mx.array]] = []
        for batch in batches:
            result = compute(batch)
            mx.async_eval(result)
            waiting.append((batch, result))
            if len(waiting) > 1:
                done, result = waiting.pop(0)
                yield done, np.array(result)
        yield from ((done, np.array(result)) for done, result in waiting)
        return
    listed: Sequence[np.ndarray] = list(batches)
    if len(listed) < 2 or cores() < 2:
        yield from ((batch, np.array(compute(batch))) for batch in listed)
        return
    with ThreadPoolExecutor(cores()) as pool, _one_blas_thread_each():
        try:
            yield from pool.map(lambda batch: (batch, np.array(compute(batch))), listed)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_lock = threading.Lock()
_parallel = 0


@contextmanager
def _one_blas_thread_each() -> Iterator[None]:
    """While batches run side by side, a product uses one thread; several callers may overlap."""
    global _parallel
    with _lock:
        _parallel += 1
        blas.set_threads(1)
    try:
        yield
    finally:
        with _lock:
            _parallel -= 1
            if not _parallel:
                blas.set_threads(cores())
