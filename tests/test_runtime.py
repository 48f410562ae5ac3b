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
    monkeypatch.setattr(runtime, "_prepared", False)
    monkeypatch.setattr(runtime, "_limit_cache", lambda _: None)
    runtime.prepare()
    assert os.environ["MLX_ENABLE_TF32"] == (chosen or "0")


@pytest.mark.skipif(runtime.on_gpu(), reason="a GPU takes its blocks otherwise")
@pytest.mark.parametrize("texts", [1, 2, 5])
@pytest.mark.parametrize("queries", [200, 251, 400, 1024])
def test_attention_on_the_cpu_goes_in_like_blocks_of_few_scores(texts, queries):
    block = runtime.query_block(texts, queries, keys=512)
    last = queries % block or block
    assert block == 64 or (
        texts * block * 512 <= 1.5 * runtime.SCORES + texts * 512 and 2 * last >= block
    )
