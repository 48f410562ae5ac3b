"""The student: EmbeddingGemma, small, as it is before it learns; and the folder it is saved to."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.prompts import PUBLISHED

VOCABULARY, WIDTH, WIDE, LAYERS, HEADS, HEAD_SIZE = 16384, 256, 512, 4, 4, 64
DENSE = (WIDTH, 512, 768)
HEAD = "dense.1.weight"  # the last of the head's matrices
CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD_SIZE,
    "query_pre_attn_scalar": HEAD_SIZE,
    "max_position_embeddings": 2048,
    "sliding_window": 512,
    "_sliding_window_pattern": LAYERS,
    "layer_types": ["sliding_attention"] * (LAYERS - 1) + ["full_attention"],
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-06,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": True,
    "use_cache": True,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def static_weights(table: np.ndarray, mix: np.ndarray, seed: int) -> dict[str, mx.array]:
    """Table, last norm and head, so that a text's vector is the mean of its pieces' `table @ mix`.

    The last norm gives every token the same length, so a table alone could not let a rare word
    outweigh a common one in the mean. The last channel takes what a token's vector lacks to length 1,
    and the head ignores it.

    Args:
        table: (vocabulary, 255) of lengths up to 1.
        mix: (255, 768).
        seed: of the rotation between the head's two matrices.
    """
    rest = np.sqrt(np.maximum(1 - np.square(table).sum(axis=1, keepdims=True), 0))
    normal = np.random.default_rng(seed).standard_normal((DENSE[1], DENSE[0]))
    half = np.linalg.qr(normal)[0]
    weights = {
        "embed_tokens.weight": np.concatenate([table, rest], axis=1),
        "norm.weight": np.zeros(WIDTH),
        "dense.0.weight": half,
        "dense.1.weight": np.pad(mix.T, [(0, 0), (0, 1)]) @ half.T,
    }
    return {name: mx.array(weight.astype(np.float32)) for name, weight in weights.items()}


def layer_weights(seed: int) -> dict[str, mx.array]:
    """The layers before they learn: normal, of deviation 0.02, and nearly silent."""
    generator = np.random.default_rng(seed)
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_SIZE, WIDTH),
        "self_attn.k_proj": (HEAD_SIZE, WIDTH),
        "self_attn.v_proj": (HEAD_SIZE, WIDTH),
        "self_attn.o_proj": (WIDTH, HEADS * HEAD_SIZE),
        "mlp.gate_proj": (WIDE, WIDTH),
        "mlp.up_proj": (WIDE, WIDTH),
        "mlp.down_proj": (WIDTH, WIDE),
    }
    # The network multiplies by 1 + w: at -0.99 every branch starts at a hundredth, so that training
    # starts from the static table's vectors.
    norms = {
        "input_layernorm": (WIDTH, 0.0),
        "post_attention_layernorm": (WIDTH, -0.99),
        "pre_feedforward_layernorm": (WIDTH, 0.0),
        "post_feedforward_layernorm": (WIDTH, -0.99),
        "self_attn.q_norm": (HEAD_SIZE, 0.0),
        "self_attn.k_norm": (HEAD_SIZE, 0.0),
    }
    weights = {}
    for i in range(LAYERS):
        for name, shape in shapes.items():
            drawn = 0.02 * generator.standard_normal(shape)
            weights[f"layers.{i}.{name}.weight"] = mx.array(drawn.astype(np.float32))
        for name, (size, value) in norms.items():
            weights[f"layers.{i}.{name}.weight"] = mx.full(size, value)
    return weights


def save(weights: dict[str, mx.array], folder: Path, dtype: mx.Dtype) -> None:
    """Writes sentence-transformers' layout, but for the tokenizer and the card."""

    def write_json(name: str, content: object) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")

    def write_weights(name: str, part: dict[str, mx.array]) -> None:
        stored = {key: weight.astype(dtype) for key, weight in part.items()}
        mx.save_safetensors(str(folder / name / "model.safetensors"), stored, {"format": "pt"})

    folder.mkdir(parents=True, exist_ok=True)
    write_weights("", {k: w for k, w in weights.items() if not k.startswith("dense.")})
    types = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for i, (inputs, outputs) in enumerate(zip(DENSE[:-1], DENSE[1:], strict=True)):
        name = f"{i + 2}_Dense"
        modules.append((name, "Dense"))
        settings = {"in_features": inputs, "out_features": outputs, "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        write_json(f"{name}/config.json", settings)
        write_weights(name, {"linear.weight": weights[f"dense.{i}.weight"]})
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    write_json(
        "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": types + kind}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in (*modes, "lasttoken")}
    write_json(
        "1_Pooling/config.json",
        {"word_embedding_dimension": WIDTH, **pooling, "include_prompt": True},
    )
    write_json("config.json", CONFIG | {"dtype": str(dtype).removeprefix("mlx.core.")})
    write_json("sentence_bert_config.json", {"max_seq_length": 2048, "do_lower_case": False})
    write_json(
        "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": PUBLISHED,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def load(folder: Path) -> dict[str, mx.array]:
    """The weights of a folder in that layout."""
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    for i in range(len(DENSE) - 1):
        head = mx.load(str(folder / f"{i + 2}_Dense" / "model.safetensors"))
        assert isinstance(head, dict)
        weights[f"dense.{i}.weight"] = head["linear.weight"]
    return weights
