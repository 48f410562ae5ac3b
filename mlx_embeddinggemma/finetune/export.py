"""The trained weights as a sentence-transformers folder."""

import shutil
from pathlib import Path

import mlx.core as mx

from mlx_embeddinggemma.checkpoint import Checkpoint
from mlx_embeddinggemma.json_files import read_object, write_json
from mlx_embeddinggemma.modules import write_modules
from mlx_embeddinggemma.settings import Settings, write_settings

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def export(
    checkpoint: Checkpoint, trained: dict[str, mx.array], folder: Path, settings: Settings, card: str
) -> None:
    """Writes the layout of google/embeddinggemma-300m, weights in float32.

    Args:
        checkpoint: what was trained: its configuration, head and tokenizer.
        trained: weights from `network.tensors`.
        folder: an empty one.
        settings: the checkpoint's own.
        card: of the model, Markdown.
    """
    source = checkpoint.folder
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    raw = read_object(source / "config.json")
    for key in ("quantization", "quantization_config", "torch_dtype"):
        raw.pop(key, None)
    raw["dtype"] = "float32"
    # What the source means, where transformers halved the number on saving.
    raw["sliding_window"] = 2 * checkpoint.config.window_radius
    write_json(folder / "config.json", raw)

    weights = {name: w for name, w in trained.items() if not name.startswith("dense.")}
    _save(folder / "model.safetensors", weights)

    for i, place in enumerate(write_modules(folder, checkpoint.dense, checkpoint.head)):
        own = {"linear.weight": trained[f"dense.{i}.weight"]}
        if checkpoint.head[i].bias:
            own["linear.bias"] = trained[f"dense.{i}.bias"]
        _save(folder / place / "model.safetensors", own)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer"})
    write_settings(folder, settings, checkpoint.config.max_position_embeddings)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _save(path: Path, weights: dict[str, mx.array]) -> None:
    mx.save_safetensors(str(path), weights, metadata={"format": "pt"})
