"""What differs from machine to machine."""

import os

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
