"""Latency of a single text and throughput of a batch through pytest-benchmark.

    pytest bench --benchmark-autosave                                measure and keep
    pytest bench --benchmark-compare                                 against what was kept last
    MODELS="demo out/4bit" pytest bench --benchmark-json=FILE        several models

`mlx-embeddinggemma bench` does not go through it: pytest-benchmark measures one variant to its end
before the next, in one process, and here variants take turns in processes of their own.
"""

import os
from typing import Any

import pytest
from mlx_embeddinggemma.bench.speed import BATCH_SIZES, LENGTHS, english, text_of

from mlx_embeddinggemma import EmbeddingGemma

pytest.importorskip("pytest_benchmark", reason="needs the extra `bench`")


@pytest.fixture(scope="module", params=os.environ.get("MODELS", "demo").split())
def model(request: pytest.FixtureRequest) -> EmbeddingGemma:
    """Each of the models in the environment variable MODELS."""
    return EmbeddingGemma(request.param)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_latency(benchmark: Any, model: EmbeddingGemma, tokens: int) -> None:
    """One text of that many tokens."""
    benchmark.group = f"{tokens} tokens"
    text = text_of(model, tokens, english())
    benchmark.extra_info["tokens"] = model.count_tokens([text])[0]
    benchmark.pedantic(model.encode, [text], rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_throughput(benchmark: Any, model: EmbeddingGemma, size: int) -> None:
    """That many texts of some 64 tokens."""
    benchmark.group = f"{size} texts"
    texts = [text_of(model, 64, english(start)) for start in range(size)]
    benchmark.extra_info["tokens"] = sum(model.count_tokens(texts))
    benchmark.pedantic(model.encode, [texts], rounds=5, warmup_rounds=1)
