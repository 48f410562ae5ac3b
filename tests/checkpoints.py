"""Synthetic EmbeddingGemma checkpoints, in every layout that must load. numpy only."""

import json
import lzma
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ",
    "Reranking": "task: search result | query: ",
    "Retrieval": "task: search result | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}


def config(**overrides: Any) -> dict[str, Any]:
    """config.json of a tiny model; every linear's input is a multiple of 64, for quantization."""
    base = {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "vocab_size": 512,
        "hidden_size": 192,
        "intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "max_position_embeddings": 2048,
        "sliding_window": 512,
        "_sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "dtype": "float32",
    } | overrides
    layers, every = base["num_hidden_layers"], base["_sliding_window_pattern"]
    base.setdefault(
        "layer_types",
        ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)],
    )
    return base


def write_tiny(folder: Path, *, seed: int = 0, dense=(256, 768), **overrides: Any) -> Path:
    """A small, well-conditioned random checkpoint in the sentence-transformers layout."""
    cfg = config(**overrides)
    rng = np.random.default_rng(seed)
    D, F, d = cfg["hidden_size"], cfg["intermediate_size"], cfg["head_dim"]
    H, K = cfg["num_attention_heads"] * d, cfg["num_key_value_heads"] * d

    def linear(m: int, n: int) -> np.ndarray:
        return rng.standard_normal((m, n), np.float32) / np.float32(math.sqrt(n))

    def norm(n: int) -> np.ndarray:
        return rng.standard_normal(n, np.float32) * np.float32(0.3)

    root = {"embed_tokens.weight": linear(cfg["vocab_size"], D)}
    for i in range(cfg["num_hidden_layers"]):
        p = f"layers.{i}."
        root |= {
            p + "input_layernorm.weight": norm(D),
            p + "self_attn.q_proj.weight": linear(H, D),
            p + "self_attn.k_proj.weight": linear(K, D),
            p + "self_attn.v_proj.weight": linear(K, D),
            p + "self_attn.o_proj.weight": linear(D, H),
            p + "self_attn.q_norm.weight": norm(d),
            p + "self_attn.k_norm.weight": norm(d),
            p + "post_attention_layernorm.weight": norm(D),
            p + "pre_feedforward_layernorm.weight": norm(D),
            p + "mlp.gate_proj.weight": linear(F, D),
            p + "mlp.up_proj.weight": linear(F, D),
            p + "mlp.down_proj.weight": linear(D, F),
            p + "post_feedforward_layernorm.weight": norm(D),
        }
    root["norm.weight"] = norm(D)
    sizes = (D, *dense)
    head = [linear(m, n) for n, m in zip(sizes[:-1], sizes[1:], strict=True)]
    write_layout(folder, cfg, root, head)
    write_tokenizer(folder, cfg["vocab_size"])
    return folder


def write_full(folder: Path, data: Path, mode: str, seed: int = 1) -> Path:
    """Full size: "mild" is well conditioned, "real" has the real tensors' statistics."""
    rng = np.random.default_rng(seed)
    root, head = {}, {}
    for tensor in json.loads((data / "goldens" / "weights-manifest.json").read_text()):
        name = tensor["name"].removeprefix("model.")
        x = rng.standard_normal(tensor["shape"], np.float32)
        if mode == "real":
            x = x * np.float32(tensor["std"]) + np.float32(tensor["mean"])
            np.clip(x, tensor["min"], tensor["max"], out=x)
        else:
            scale = 0.3 if "norm" in name else 0.03 if "embed" in name else x.shape[1] ** -0.5
            x *= np.float32(scale)
        (head if name.startswith("dense.") else root)[name] = x
    cfg = json.loads((data / "model-configs" / "config.json").read_text())
    write_layout(folder, cfg, root, [head["dense.0.weight"], head["dense.1.weight"]])
    packed = (data / "tokenizer" / "tokenizer.json.xz").read_bytes()
    (folder / "tokenizer.json").write_bytes(lzma.decompress(packed))
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    return folder


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "model_max_length": 2048,
    "padding_side": "right",
}


def write_layout(
    folder: Path, cfg: dict[str, Any], root: dict[str, np.ndarray], head: list[np.ndarray]
) -> None:
    """The sentence-transformers layout of google/embeddinggemma-300m."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", cfg)
    save_file(root, folder / "model.safetensors", metadata={"format": "pt"})
    types = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for i, weight in enumerate(head):
        name = f"{i + 2}_Dense"
        modules.append((name, "Dense"))
        settings = {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        write_json(folder / name / "config.json", settings)
        save_file({"linear.weight": weight}, folder / name / "model.safetensors")
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": types + kind}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
    size = {"word_embedding_dimension": cfg["hidden_size"], "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", size | pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 2048, "do_lower_case": False})
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer.json of Gemma's kind: BPE, byte fallback, U+2581 for spaces, bos and eos."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    pieces += [chr(i) for i in range(33, 127)]
    merges = []
    for a, b in (
        ("t", "h"),
        ("th", "e"),
        ("i", "n"),
        ("e", "r"),
        ("\u2581", "the"),
        ("\u2581", "a"),
    ):
        merges.append((a, b))
        pieces.append(a + b)
    pieces += [f"<unused{i}>" for i in range(vocab_size - len(pieces))]
    bpe = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1",
        special_tokens=[("<bos>", 2), ("<eos>", 1)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


# Variants: each copies a folder and changes one thing.


def edit_config(folder: Path, out: Path, **changes: Any) -> Path:
    """A copy with other values in config.json; a value of None removes the key."""
    shutil.copytree(folder, out)
    path = out / "config.json"
    cfg = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in cfg.items() if value is not None})
    return out


def all_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Root and head by this package's names."""
    tensors = load_file(folder / "model.safetensors")
    for i, path in enumerate(sorted(folder.glob("*_Dense"))):
        tensors[f"dense.{i}.weight"] = load_file(path / "model.safetensors")["linear.weight"]
    return tensors


def as_mlx_community(
    folder: Path, out: Path, *, bits: int | None = None, group_size: int = 64, mode: str = "affine"
) -> Path:
    """`model.` prefix, head in the same file, and packed weights where `bits` is given."""
    import mlx.core as mx

    out.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, out / name)
    tensors: dict[str, mx.array] = {}
    for name, value in all_tensors(folder).items():
        full = name if name.startswith("dense.") else f"model.{name}"
        array = mx.array(value)
        if bits and array.ndim == 2:
            packed = mx.quantize(array, group_size=group_size, bits=bits, mode=mode)
            for kind, part in zip(("weight", "scales", "biases"), packed, strict=False):
                tensors[full.replace("weight", kind)] = part
        else:
            tensors[full] = array.astype(mx.bfloat16) if bits is None else array
    mx.save_safetensors(str(out / "model.safetensors"), tensors, metadata={"format": "mlx"})
    cfg = json.loads((folder / "config.json").read_text())
    if bits:
        cfg["quantization"] = {"group_size": group_size, "bits": bits, "mode": mode}
    write_json(out / "config.json", cfg)
    return out


def shard(folder: Path, out: Path, n: int = 3) -> Path:
    """The root tensors spread over n files with an index."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    index = {}
    for i in range(n):
        name = f"model-{i + 1:05}-of-{n:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::n]}
        save_file(part, out / name)
        index |= dict.fromkeys(part, name)
    write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return out
