"""What differs from machine to machine."""

import os

import numpy as np
import pytest

from mlx_embeddinggemma import runtime


@pytest.mark.parametrize("chosen", [None, "1"])
def test_float32_is_float32_on_a_gpu_unless_the_user_says_otherwise(monkeypatch, chosen):
    if chosen:
        monkeypatch.setenv("MLX_ENABLE_TF32", chosen)
    else:
        monkeypatch.delenv("MLX_ENABLE_TF32")
    monkeypatch.setattr(runtime, "on_gpu", lambda: True)
    runtime.prepare()
    assert os.environ["MLX_ENABLE_TF32"] == (chosen or "0")
    monkeypatch.undo()
    runtime.prepare()  # the limits of this machine again


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize(
    ("B", "L"), [(1, 2), (1, 300), (1, 2048), (2, 500), (3, 332), (16, 64), (67, 15), (16, 2048)]
)
def test_every_token_of_a_batch_is_in_one_part(monkeypatch, cores, B, L):
    monkeypatch.setattr(runtime, "cores", lambda: cores)
    times = np.zeros((B, L), int)
    for part in runtime.parts(B, L):
        assert times[part].size
        times[part] += 1
    assert (times == 1).all()
