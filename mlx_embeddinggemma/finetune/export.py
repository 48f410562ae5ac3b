"""The trained weights as a sentence-transformers folder."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_embeddinggemma import strict_json
from mlx_embeddinggemma.checkpoint import Checkpoint, read_json
from mlx_embeddinggemma.prompts import load_prompts

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MODULE = "sentence_transformers.models."
POOLING = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")


def export(
    checkpoint: Checkpoint, trained: dict[str, mx.array], folder: Path, max_length: int, card: str
) -> None:
    """Writes the layout of google/embeddinggemma-300m, weights in float32.

    Args:
        checkpoint: what was trained: its configuration, tokenizer and prompts.
        trained: weights from `network.tensors`.
        folder: an empty one.
        max_length: in tokens.
        card: of the model, Markdown.
    """
    source = checkpoint.folder
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    raw = read_json(source / "config.json")
    for key in ("quantization", "quantization_config", "torch_dtype"):
        raw.pop(key, None)
    raw["dtype"] = "float32"
    # What the source means, where transformers halved the number on saving.
    raw["sliding_window"] = 2 * checkpoint.config.window_radius
    _write_json(folder / "config.json", raw)

    weights = {name: w for name, w in trained.items() if not name.startswith("dense.")}
    _save(folder / "model.safetensors", weights)

    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    sizes = zip(checkpoint.dense[:-1], checkpoint.dense[1:], strict=True)
    for i, (inputs, outputs) in enumerate(sizes):
        name = f"{i + 2}_Dense"
        modules.append((name, "Dense"))
        settings = {
            "in_features": inputs,
            "out_features": outputs,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        _write_json(folder / name / "config.json", settings)
        _save(folder / name / "model.safetensors", {"linear.weight": trained[f"dense.{i}.weight"]})
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    _write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": MODULE + kind}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": checkpoint.config.hidden_size}
        | {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in POOLING}
        | {"include_prompt": True},
    )
    _write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False}
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": load_prompts(source),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _save(path: Path, weights: dict[str, mx.array]) -> None:
    mx.save_safetensors(str(path), weights, metadata={"format": "pt"})


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    text = strict_json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
