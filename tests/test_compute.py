"""One lasting thread computes: equal bits, flat threads, forks; and what is set for the process."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from mlx_embeddinggemma import EmbeddingGemma, blas, compute, runtime
from mlx_embeddinggemma.batching import pad

LINUX_CPU = sys.platform == "linux" and not runtime.on_gpu()
TEXTS = ["a short one", "another", "in the thin thing " * 30, "the rain in the lane " * 90]


@pytest.fixture(scope="module")
def model(tiny):
    return EmbeddingGemma(tiny)


def run(code: str, **environment: str) -> str:
    """Runs code in a process of its own; a hang ends after five minutes, on a busy machine too."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_same_checkpoint_texts_and_batches_give_the_same_bits(tiny, model):
    """Batches that want one thread a product and batches that want all follow each other."""
    expected = model.encode(TEXTS, batch_size=1)
    for _ in range(8):
        np.testing.assert_array_equal(model.encode(TEXTS, batch_size=1), expected)
    np.testing.assert_array_equal(EmbeddingGemma(tiny).encode(TEXTS, batch_size=1), expected)


def test_threads_that_encode_at_once_get_the_same_bits_too(model):
    expected = [model.encode([text], batch_size=1) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: model.encode([TEXTS[i % 4]], batch_size=1), range(48)))
    for i, vectors in enumerate(found):
        np.testing.assert_array_equal(vectors, expected[i % 4])


def os_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_come_and_go_and_leave_nothing_behind(tiny):
    code = """
        import asyncio, os, resource, sys, threading
        from mlx_embeddinggemma import EmbeddingGemma
        model = EmbeddingGemma(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
        def count():
            return len(os.listdir("/proc/self/task"))
        def use(i):
            model.encode(["a", "b" * (i % 40)])
            if i % 50 == 1:
                EmbeddingGemma(FOLDER)
        def through(n):
            for i in range(n):
                thread = threading.Thread(target=use, args=(i,))
                thread.start()
                thread.join()
        through(20)
        before, memory = count(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        through(100)
        async def many():
            await asyncio.gather(*(asyncio.to_thread(model.encode, "c" * (i % 40)) for i in range(40)))
        asyncio.run(many())
        print(count() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    """
    threads, kilobytes = map(int, run(code.replace("FOLDER", repr(str(tiny)))).split())
    assert threads <= 1 and kilobytes < 20_000


FORK = """
    import os, threading
    import numpy as np
    from mlx_embeddinggemma import EmbeddingGemma
    TEXTS = ["a short one", "the rain in the lane " * 30] * 9
    model = EmbeddingGemma(FOLDER)
    {before}
    for _ in range({times}):
        if not (child := os.fork()):
            found = model.encode(TEXTS)
            # The numbers are 0 to 255, and an uncaught exception would be 1.
            os._exit(42 if np.abs((found * found).sum(1) - 1).max() < 1e-5 else 43)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert model.encode(TEXTS).shape == (18, 768)
"""


@pytest.mark.skipif(not LINUX_CPU, reason="a GPU cannot be used after a fork")
@pytest.mark.parametrize(
    ("before", "times"),
    [
        ("", 2),  # the parent only loaded
        ("model.encode(TEXTS)", 2),
        ("import mlx.core as mx; mx.eval(mx.ones(9) + 1); model.encode(TEXTS)", 2),
        # Another thread computes while this one forks.
        (
            "work = lambda: [model.encode(TEXTS) for _ in iter(int, 1)]\n"
            "    threading.Thread(target=work, daemon=True).start()",
            8,
        ),
    ],
    ids=["loaded", "used", "beside MLX", "while computing"],
)
def test_a_forked_child_computes(tiny, before, times):
    run(FORK.format(before=before, times=times).replace("FOLDER", repr(str(tiny))))


@pytest.mark.skipif(not LINUX_CPU, reason="a GPU cannot be used after a fork")
def test_a_childs_child_and_a_pool_of_forks_compute(tiny):
    out = run(
        f"""
        import multiprocessing, os
        from mlx_embeddinggemma import EmbeddingGemma
        model = EmbeddingGemma({str(tiny)!r})
        expected = model.encode("a text").tolist()
        def embed(text):
            return model.encode(text).tolist()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert all(vector == expected for vector in pool.map(embed, ["a text"] * 9))
        if not (child := os.fork()):
            model.encode("a text")
            if not (grandchild := os.fork()):
                os._exit(42 if model.encode("a text").tolist() == expected else 43)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert out == "42\n"


@pytest.mark.skipif(not LINUX_CPU, reason="a GPU cannot be used after a fork")
@pytest.mark.parametrize("imported", ["", "import mlx_embeddinggemma.encoder"])
@pytest.mark.parametrize("way", ["fork", "pool"])
def test_a_child_of_a_process_that_used_mlx_itself_loads_and_computes(tiny, imported, way):
    out = run(
        f"""
        import multiprocessing, os
        import mlx.core as mx
        {imported}
        mx.eval(mx.ones(3) + 1)
        def embed(text):
            from mlx_embeddinggemma import EmbeddingGemma
            return EmbeddingGemma({str(tiny)!r}).encode(text).shape
        if {way!r} == "pool":
            with multiprocessing.get_context("fork").Pool(1) as pool:
                print(*pool.map(embed, ["a"]))
        elif not (child := os.fork()):
            print(embed("a"), flush=True)
            os._exit(0)
        else:
            os.waitpid(child, 0)
        """
    )
    assert out == "(768,)\n"


def test_a_fork_of_a_process_that_uses_the_gpu_says_at_once_what_to_do(tiny):
    out = run(
        f"""
        import os
        from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError, runtime
        model = EmbeddingGemma({str(tiny)!r})
        runtime.on_gpu = lambda: True
        if not (child := os.fork()):
            for attempt in (lambda: model.encode("a"), lambda: EmbeddingGemma({str(tiny)!r})):
                try:
                    attempt()
                except EmbeddingGemmaError as error:
                    print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        """
    )
    assert out.count("'spawn', or load the model after the fork") == 2


def test_building_a_graph_sets_nothing(model, monkeypatch):
    monkeypatch.setattr(blas, "set_threads", lambda n: pytest.fail("threads set"))
    for length in (3, 900):
        model.network(*pad([[2, *(10 + i % 400 for i in range(length)), 1]]))


def test_threads_of_products_change_only_when_no_batch_runs(model, monkeypatch):
    """Whatever was started before is done when the number is set."""
    running: list[mx.array] = []
    started = mx.async_eval

    def start(result):
        running.append(result)
        started(result)

    def check(n, real=blas.set_threads):
        if n != blas.threads():
            for result in running:
                assert result is not compute._in_flight
        real(n)

    monkeypatch.setattr(mx, "async_eval", start)
    monkeypatch.setattr(blas, "set_threads", check)
    model.encode(TEXTS, batch_size=1)
    assert len(running) == 4


def test_an_error_in_a_batch_reaches_the_caller_and_the_next_call_works(model, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(type(model.network), "pool", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.encode(TEXTS)
    assert model.encode(TEXTS).shape == (4, 768)


def test_who_stops_in_between_leaves_a_model_that_computes(model):
    """As Ctrl-C does: the caller goes away while batches are under way."""

    def texts():
        yield from TEXTS * 600
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.encode(texts(), batch_size=4)
    assert model.encode("a").shape == (768,)


@pytest.mark.parametrize(
    "last",
    [
        "ThreadPoolExecutor(2).map(work, range(9))",
        "threading.Thread(target=lambda: [time.sleep(0.3), *map(work, range(9))]).start()",
        "atexit.register(lambda: [*map(work, range(9))])",
        "model.end = weakref.finalize(model, lambda m: [*map(work, range(9))], EmbeddingGemma(FOLDER))",
    ],
    ids=["pool", "thread", "atexit", "finalize"],
)
def test_vectors_are_there_for_whatever_outlives_the_main_thread(tiny, last):
    code = f"""
        import atexit, os, threading, time, weakref
        from concurrent.futures import ThreadPoolExecutor
        from mlx_embeddinggemma import EmbeddingGemma
        model = EmbeddingGemma(FOLDER)
        def work(i):
            assert model.encode("text " * i).shape == (768,)
            os.write(1, f"{{i}} ".encode())  # whole, whoever else writes
        {last}
    """
    assert sorted(run(code.replace("FOLDER", repr(str(tiny)))).split()) == list("012345678")


def test_a_finalizer_that_wants_a_vector_on_the_compute_thread_gets_it(tiny):
    run(
        f"""
        import gc
        from mlx_embeddinggemma import EmbeddingGemma
        model = EmbeddingGemma({str(tiny)!r})
        class Buffer:
            def __init__(self):
                self.circle = self
            def __del__(self):
                model.encode("flush")
        gc.set_threshold(300)
        for i in range(40):
            Buffer()
            model.encode(["y", "z " * 20])
        """
    )


def test_mlx_beside_it_in_any_thread(model):
    expected = model.encode(TEXTS)
    results = []

    def work():
        for _ in range(10):
            a = mx.ones((64, 64))
            results.append(float((a @ a.T).sum()))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    found = model.encode(TEXTS)
    for thread in threads:
        thread.join()
    assert len(results) == 30 and np.abs(found - expected).max() < 2e-6


def test_vectors_as_mlx_arrays_from_asyncio(model):
    async def both():
        return await asyncio.gather(
            *(asyncio.to_thread(model.encode, text, return_mlx=True) for text in TEXTS)
        )

    found = asyncio.run(both())
    assert all(float((v * v).sum()) == pytest.approx(1, abs=1e-5) for v in found)


# What is set for the whole process.

SETTINGS = """
    import os
    import mlx.core as mx
    from mlx_embeddinggemma import EmbeddingGemma, runtime
    {before}
    before = dict(os.environ)
    EmbeddingGemma("demo").encode("a")
    {after}
    EmbeddingGemma("demo").encode("a")
    print(mx.set_cache_limit(0), os.environ == before)
"""


@pytest.mark.skipif(runtime.on_gpu(), reason="the limits of a CPU")
@pytest.mark.parametrize(
    ("before", "after", "leave", "limit"),
    [
        ("", "", "", 2**22),
        ("", "", "0", 2**22),
        ("", "", "1", 2**25),
        ("mx.set_cache_limit(2**27)", "", "", 2**27),
        ("", "mx.set_cache_limit(2**28)", "", 2**28),
        ("mx.set_cache_limit(0)", "", "", 0),
    ],
)
def test_the_cache_limit_is_set_once_and_only_where_nobody_did(before, after, leave, limit):
    out = run(SETTINGS.format(before=before, after=after), **{runtime.LEAVE_ALONE: leave})
    assert out == f"{limit} True\n"


def test_variables_that_share_out_cores_are_followed(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    allowed = runtime.cores()
    for value, expected in (
        ("1", 1),
        ("10000", allowed),
        ("", allowed),
        ("0", allowed),
        ("a,1", allowed),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert runtime.cores() == expected
