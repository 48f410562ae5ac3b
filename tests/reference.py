"""The truth: transformers' Gemma 3 and the sentence-transformers modules on PyTorch, float32, CPU."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel


def load(folder: Path) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """Network and head."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    head = [
        load_file(path / "model.safetensors")["linear.weight"].float()
        for path in sorted(folder.glob("*_Dense"))
    ]
    return model.eval(), head


@torch.inference_mode()
def vectors(model: torch.nn.Module, head: list[torch.Tensor], ids: list[list[int]]) -> np.ndarray:
    """Unit sentence vectors (n, size) of token ids, the texts padded on the right together."""
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    x = model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
    real = mask[..., None].float()
    y = (x * real).sum(1) / real.sum(1)
    for weight in head:
        y = y @ weight.T
    return torch.nn.functional.normalize(y, dim=-1).numpy()


@dataclass
class Trace:
    """What entered and left each layer for one text, each (1, L, D)."""

    entered: list[np.ndarray]
    left: list[np.ndarray]
    normed: np.ndarray


@torch.inference_mode()
def trace(model: torch.nn.Module, ids: list[int]) -> Trace:
    entered, left = [], []

    def record(_, args, kwargs, out):
        entered.append((args[0] if args else kwargs["hidden_states"]).numpy())
        left.append((out[0] if isinstance(out, tuple) else out).numpy())

    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in model.layers]
    out = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state.numpy()
    for hook in hooks:
        hook.remove()
    return Trace(entered, left, out)


def sentence_transformer(folder: Path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
    )
