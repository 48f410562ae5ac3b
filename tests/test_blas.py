"""MLX's CPU products go through OpenBLAS, whatever was imported first, and nobody else's do."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on a Mac MLX brings its own")


def run(code: str, *flags: str) -> str:
    """Runs code in a fresh interpreter: binding belongs to a process."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_products_are_right_for_many_shapes_and_layouts():
    run("""
        import numpy as np, mlx.core as mx
        from mlx_embeddinggemma import blas
        assert "openblas" in blas.use_openblas()
        rng = np.random.default_rng(0)
        for m, k, n in [(1, 1, 1), (1, 768, 768), (16, 768, 3072), (257, 255, 31), (3, 2048, 5)]:
            a, b = rng.standard_normal((2, m, k)), rng.standard_normal((2, n, k))
            a, b = a.astype(np.float32), b.astype(np.float32)
            exact = a.astype(float) @ b.astype(float).swapaxes(1, 2)
            ours = np.array(mx.array(a) @ mx.array(b).swapaxes(1, 2))
            assert np.abs(ours - exact).max() <= 1e-5 * np.sqrt(k) * 4, (m, k, n)
            plain = np.array(mx.array(a[0]) @ mx.array(np.ascontiguousarray(b[0].T)))
            assert np.abs(plain - exact[0]).max() <= 1e-5 * np.sqrt(k) * 4, (m, k, n)
    """)


SPEED = """
    import time, mlx.core as mx
    from mlx_embeddinggemma import blas
    a = mx.random.normal((384, 384))
    def seconds():
        mx.eval(a @ a)
        start = time.perf_counter()
        mx.eval(a @ a)
        return time.perf_counter() - start
    before = min(seconds() for _ in range(3))
    blas.use_openblas()
    blas.set_threads(1)  # two threads wait for each other where another process runs
    after = min(seconds() for _ in range(40))
    print(before / after)
"""


def test_products_are_ten_times_faster_though_mlx_was_imported_and_used_before():
    assert float(run(SPEED)) > 10


def test_without_an_openblas_one_warning_says_what_to_do():
    out = run("""
        import warnings
        from mlx_embeddinggemma import blas
        def nothing():
            raise LookupError("no OpenBLAS was found")
        blas._find_openblas = nothing
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert blas.use_openblas() is None and blas.use_openblas() is None
        print(len(caught), caught[0].message)
        import mlx.core as mx
        assert (mx.ones((2, 2)) @ mx.ones((2, 2))).tolist() == [[2, 2], [2, 2]]
    """)
    assert out.startswith("1 MLX keeps its slow reference BLAS (no OpenBLAS was found): pip install")
    assert '"mlx-embeddinggemma[cpu]"' in out


def test_many_threads_may_ask_at_once():
    run("""
        from concurrent.futures import ThreadPoolExecutor
        from mlx_embeddinggemma import blas
        with ThreadPoolExecutor(16) as pool:
            assert len(set(pool.map(lambda _: blas.use_openblas(), range(64)))) == 1
    """)


def test_nothing_becomes_global():
    """Another library that looks for cblas_sgemm does not find ours."""
    run("""
        import ctypes
        from mlx_embeddinggemma import blas
        assert blas.use_openblas()
        for name in ("cblas_sgemm", "scipy_cblas_sgemm"):
            assert not hasattr(ctypes.CDLL(None), name)
    """)
