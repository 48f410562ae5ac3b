"""Training steps of this package and of PyTorch in turns: tokens per second on the same batches.

    python training/speed.py ROWS.jsonl --model demo --rounds 10

The same network (transformers' Gemma 3 with the head), texts, loss (in-batch negatives), float32 and Adam;
all weights but the vocabulary table learn. Losses of each step are printed beside each other: they should agree.
"""

import argparse
import time
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from mlx_embeddinggemma import EmbeddingGemma, runtime
from mlx_embeddinggemma.batching import pad
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.finetune.batches import batch_at
from mlx_embeddinggemma.finetune.data import read
from mlx_embeddinggemma.finetune.gradients import loss_and_gradient
from mlx_embeddinggemma.finetune.losses import build
from mlx_embeddinggemma.finetune.network import trainable


class Ours:
    def __init__(self, folder: Path, rate: float):
        self.model = trainable(open_checkpoint(folder))
        self.optimizer = optim.Adam(learning_rate=rate, bias_correction=True)
        self.loss = build("multiple_negatives_ranking", size=768, nested=False)

    def step(self, batch, ids) -> float:
        value, gradient = loss_and_gradient(self.model, self.loss, batch, ids)
        updated = self.optimizer.apply_gradients(gradient, self.model.trainable_parameters())
        mx.eval(value, updated, self.optimizer.state)
        self.model.update(updated)
        return value.item()


class PyTorch:
    def __init__(self, folder: Path, rate: float, attention: str):
        self.model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )
        self.model.embed_tokens.weight.requires_grad_(False)
        paths = sorted(folder.glob("*_Dense"))
        self.head = [
            torch.nn.Parameter(load_file(p / "model.safetensors")["linear.weight"].float())
            for p in paths
        ]
        learning = [p for p in self.model.parameters() if p.requires_grad] + self.head
        self.optimizer = torch.optim.Adam(learning, lr=rate)

    def step(self, batch, ids) -> float:
        padded, lengths = pad(ids)
        mask = torch.tensor((np.arange(padded.shape[1]) < lengths[:, None]).astype(np.int64))
        x = self.model(input_ids=torch.tensor(padded).long(), attention_mask=mask, use_cache=False)
        real = mask[..., None].float()
        y = (x.last_hidden_state * real).sum(1) / real.sum(1)
        for weight in self.head:
            y = y @ weight.T
        y = torch.nn.functional.normalize(y, dim=-1)
        columns = torch.tensor(batch.columns).long()
        scores = 20 * y[columns[0]] @ y[columns[1:].reshape(-1)].T
        if batch.targets.hidden is not None:
            scores = scores.masked_fill(torch.tensor(np.array(batch.targets.hidden)), -1e30)
        value = torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        self.optimizer.step()
        return value.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--attention", default="eager", help="PyTorch's: eager or sdpa")
    args = parser.parse_args()
    torch.set_num_threads(runtime.cores())
    encoder = EmbeddingGemma(args.model)
    data = read(args.rows, encoder.prompts)
    engines = {
        "ours": Ours(encoder.folder, 1e-4),
        "PyTorch": PyTorch(encoder.folder, 1e-4, args.attention),
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    # All batches twice: PyTorch prepares kernels for shapes that it has not met.
    for step in range(2 * args.rounds):
        batch = batch_at(data, args.batch_size, 0, step % args.rounds)
        ids = encoder.tokenize(batch.texts)
        losses = {}
        for name in engines if step % 2 else reversed(engines):
            start, cpu = time.perf_counter(), time.process_time()
            losses[name] = engines[name].step(batch, ids)
            seconds = time.perf_counter() - start
            if step >= args.rounds:
                rates[name].append(sum(map(len, ids)) / seconds)
            print(
                f"{name} {losses[name]:.4f} {seconds:.2f} s, cpu {time.process_time() - cpu:.2f} s",
                end="   ",
            )
        print(flush=True)
    for name, values in rates.items():
        print(f"{name}: {np.median(values):.0f} tokens/s (median of {len(values)} steps)")
    ratios = np.array(rates["ours"]) / np.array(rates["PyTorch"])
    print(f"ours / PyTorch: {np.median(ratios):.2f} (from {ratios.min():.2f} to {ratios.max():.2f})")


if __name__ == "__main__":
    main()
