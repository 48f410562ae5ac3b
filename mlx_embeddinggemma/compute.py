"""The one thread on which the encoders of this process compute.

MLX gives every thread that uses it streams of its own: OS threads, which stay when that thread ends.
Texts embedded from thousands of short-lived threads would leave thousands of them. And OpenBLAS keeps
one number of threads for the whole process, which decides how a product's edges round: it may change
only while no product runs. Both hold when one lasting thread starts all work.
"""

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import blas, runtime
from mlx_embeddinggemma.errors import EmbeddingGemmaError

P = ParamSpec("P")
T = TypeVar("T")


class _Thread:
    """Runs functions one after the other, until the process ends.

    A daemon, and no executor: those stop as soon as the main thread is done, when other threads, and
    what runs at exit, may still want vectors.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlx-embeddinggemma", daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], T]) -> T:
        # The garbage collector runs anybody's __del__ here, which may want a vector.
        if threading.current_thread() is self._thread:
            return function()
        if sys.is_finalizing():  # Python has stopped the thread: who waited for it would wait for ever
            raise EmbeddingGemmaError("Python is about to end, and computes nothing any more")
        result: Future[T] = Future()
        self._jobs.put((result, function))
        return result.result()

    def _work(self) -> None:
        while True:
            result, function = self._jobs.get()
            try:
                with _working:
                    result.set_result(function())
            except BaseException as error:
                result.set_exception(error)
            del result, function  # before the next one comes, which may be hours


_thread: _Thread | None = None
_starting = threading.RLock()
_working = threading.RLock()  # held by the compute thread while it runs a function
_in_flight: mx.array | None = None  # the batch that was started last, and may still run
_lost_to_a_fork = False


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns on the compute thread, which runs one function at a time.

    Raises:
        EmbeddingGemmaError: this process was forked from one that computed on a GPU.
    """
    global _thread
    if _lost_to_a_fork:
        raise EmbeddingGemmaError(
            "this process was forked from one whose model computes on the GPU, which no fork can use: "
            "start it with multiprocessing's 'spawn', or load the model after the fork only "
            "(gunicorn without --preload)"
        )
    with _starting:
        _thread = _thread or _Thread()
    return _thread.run(partial(function, *args, **kwargs))


def run_batches(
    forward: Callable[[np.ndarray], mx.array],
    batches: Iterable[np.ndarray],
    product_threads: Callable[[np.ndarray], int],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each batch with its result, in order; the next one is prepared while it runs.

    Whoever stops in between, by Ctrl-C or an exception, leaves at most two batches that are computed
    for nobody.

    Args:
        forward: builds a batch's result.
        batches: what `forward` takes.
        product_threads: how many threads a matrix product of a batch may use.
    """
    results = _pipelined(forward, batches, product_threads)
    while (result := run(next, results, None)) is not None:
        yield result


def _pipelined(
    forward: Callable[[np.ndarray], mx.array],
    batches: Iterable[np.ndarray],
    product_threads: Callable[[np.ndarray], int],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    global _in_flight
    running: tuple[np.ndarray, mx.array] | None = None
    for batch in batches:
        _use_product_threads(product_threads(batch))
        result = forward(batch)
        mx.async_eval(result)
        _in_flight = result
        if running:
            yield running[0], np.array(running[1])
        running = batch, result
    if running:
        yield running[0], np.array(running[1])


def _use_product_threads(n: int) -> None:
    if n != blas.threads():
        _wait()
        blas.set_threads(n)


def _wait() -> None:
    """Until no batch runs."""
    global _in_flight
    if _in_flight is not None:
        np.array(_in_flight)
        _in_flight = None


def _before_fork() -> None:
    """Lets the running batch end: a lock that MLX held while it forks, the child could never open."""
    _working.acquire()
    _wait()


def _after_fork_in_child() -> None:
    """A fork has none of its parent's threads: it starts its own, where the device allows it."""
    global _thread, _starting, _working, _lost_to_a_fork
    _lost_to_a_fork = _lost_to_a_fork or (_thread is not None and runtime.on_gpu())
    _thread, _starting, _working = None, threading.RLock(), threading.RLock()


def _after_fork_in_parent() -> None:
    _working.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


@atexit.register
def _at_exit() -> None:
    """Lets what runs end: Python would stop its thread in the middle of MLX."""
    with _working:
        _wait()
