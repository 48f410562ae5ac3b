"""The tensors an EmbeddingGemma checkpoint must hold: names, shapes and what each is for.

Names are those of google/embeddinggemma-300m without a `model.` prefix, and `dense.0`, `dense.1` for
the head. The network stores some matrices stacked; `PARTS` says which.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.errors import EmbeddingGemmaError

TABLE = "embed_tokens"
# MLX's ways to pack, with the group sizes and bits of each.
MODES = {
    "affine": ((32, 64, 128), (2, 3, 4, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}
PARTS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def parts(path: str) -> list[str]:
    """Paths in a checkpoint of the matrices that the network's `path` stacks."""
    parent, _, name = path.rpartition(".")
    return [f"{parent}.{part}" for part in PARTS[name]] if name in PARTS else [path]


def matrices(config: Config, dense: Sequence[int]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every matrix by path, the vocabulary table first."""
    D, F = config.hidden_size, config.intermediate_size
    H = config.num_attention_heads * config.head_dim
    K = config.num_key_value_heads * config.head_dim
    shapes = {TABLE: (config.vocab_size, D)}
    for i in range(config.num_hidden_layers):
        attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        shapes |= {
            f"{attention}.q_proj": (H, D),
            f"{attention}.k_proj": (K, D),
            f"{attention}.v_proj": (K, D),
            f"{attention}.o_proj": (D, H),
            f"{mlp}.gate_proj": (F, D),
            f"{mlp}.up_proj": (F, D),
            f"{mlp}.down_proj": (D, F),
        }
    for i, (n, m) in enumerate(zip(dense[:-1], dense[1:], strict=True)):
        shapes[f"dense.{i}"] = (m, n)
    return shapes


def norms(config: Config) -> dict[str, tuple[int]]:
    """Size of every norm by path."""
    D, d = config.hidden_size, config.head_dim
    sizes: dict[str, tuple[int]] = {}
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}"
        sizes |= {
            f"{layer}.input_layernorm": (D,),
            f"{layer}.self_attn.q_norm": (d,),
            f"{layer}.self_attn.k_norm": (d,),
            f"{layer}.post_attention_layernorm": (D,),
            f"{layer}.pre_feedforward_layernorm": (D,),
            f"{layer}.post_feedforward_layernorm": (D,),
        }
    return sizes | {"norm": (D,)}


def quantization_of(path: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """`group_size`, `bits` and `mode` of one matrix from config.json's `quantization` table.

    mlx-lm writes defaults at the top and overrides under the tensor's path, with or without the
    `model.` prefix.

    Raises:
        EmbeddingGemmaError: no such quantization.
    """
    override = table.get(path, table.get(f"model.{path}"))
    settings = override if isinstance(override, Mapping) else table
    group_size, bits = settings.get("group_size"), settings.get("bits")
    mode = settings.get("mode", table.get("mode", "affine"))
    sizes, widths = MODES.get(mode, ((), ())) if isinstance(mode, str) else ((), ())
    if group_size not in sizes or bits not in widths:
        known = "; ".join(f"mode of {m}: group_size of {s}, bits of {b}" for m, (s, b) in MODES.items())
        raise EmbeddingGemmaError(
            f"config.json: expected for {path} a quantization that MLX has ({known}), "
            f"got {group_size!r:.40}, {bits!r:.40} and {mode!r:.40}"
        )
    return {"group_size": int(group_size), "bits": int(bits), "mode": mode}


def packed_shapes(
    path: str, shape: tuple[int, int], quantization: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Shapes of a packed matrix's tensors: weight, scales and, for affine, biases."""
    outputs, inputs = shape
    groups = (outputs, inputs // quantization["group_size"])
    shapes: dict[str, tuple[int, ...]] = {
        f"{path}.weight": (outputs, inputs * quantization["bits"] // 32),
        f"{path}.scales": groups,
    }
    if quantization["mode"] == "affine":
        shapes[f"{path}.biases"] = groups
    return shapes
