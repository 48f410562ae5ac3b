"""GGUF files as sources: llama.cpp's gemma-embedding, and Ollama's gemma3 with a dense head."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_embeddinggemma import layout
from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.head import Dense

from .card import as_json
from .gguf_reader import GgufTensor, read_gguf
from .sentencepiece_model import model_proto
from .sources import COPIED, Matrix, Source, open_folder

ARCHITECTURE, OLLAMA = "gemma-embedding", "gemma3"
# Older names of Ollama's, and what it takes for a key that its files leave out.
OLLAMA_NAMES = {"rope.global.freq_base": "rope.freq_base", "rope.local.freq_base": "rope.freq_base_swa"}
OLLAMA_DEFAULTS = {
    "attention.key_length": 256,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 1_000_000.0,
}
# What llama.cpp may be told otherwise, and `model_proto` takes for granted.
GEMMA_TOKENIZER = {
    "bos_token_id": 2,
    "eos_token_id": 1,
    "unknown_token_id": 3,
    "padding_token_id": 0,
    "add_space_prefix": False,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def open_gguf(
    path: Path, *, dense_from: str | Path | None = None, tokenizer: str | Path | None = None
) -> Source:
    """A GGUF file as a source.

    Args:
        path: the file.
        dense_from: a checkpoint to take the dense head from, for files that lost it.
        tokenizer: a folder with tokenizer files, where the GGUF's own will not do.

    Raises:
        EmbeddingGemmaError: damaged, another architecture, or without the dense head.
    """
    metadata, found = read_gguf(path)
    found.pop("output.weight", None)  # the head of the language model, no part of an encoder
    tensors = {_path_of(name): tensor for name, tensor in found.items()}
    _check_kind(path, metadata, tensors)
    if len(tensors) < len(found):
        raise EmbeddingGemmaError(f"{path}: expected each tensor once, got some under two names")
    try:
        raw = _config(path, metadata, tensors)
    except KeyError as error:
        raise EmbeddingGemmaError(f"{path} lacks {error}, which the network's shape needs") from None
    try:
        config = Config.from_dict(raw)
    except EmbeddingGemmaError as error:
        raise EmbeddingGemmaError(str(error).replace("config.json", f"{path}'s metadata", 1)) from None
    raw["sliding_window"] = 2 * config.window_radius  # a halved one is repaired
    head: Mapping[str, Matrix] = {p: t for p, t in sorted(tensors.items()) if p.startswith("dense.")}
    dense: tuple[int, ...] = (config.hidden_size, *(m.shape[0] for m in head.values()))
    layers: tuple[Dense, ...] = (Dense(),) * len(head)
    biases: Mapping[str, Matrix] = {}
    inputs = {path.name: path}
    if dense_from is not None:
        other = open_folder(dense_from)
        head = {p: m for p, m in other.matrices.items() if p.startswith("dense.")}
        dense = (config.hidden_size, *other.dense[1:])
        layers, biases = other.head, other.biases
        inputs |= {f"{other.name}/{name}": file for name, file in other.inputs.items()}
    if len(head) < (2 if dense_from is None else 1):
        raise EmbeddingGemmaError(
            f"{path} lacks the dense head (dense_2 and dense_3): its vectors would not be "
            "EmbeddingGemma's. Give a checkpoint that has it: --dense-from google/embeddinggemma-300m"
        )
    matrices = {p: head.get(p, tensors.get(p)) for p in layout.matrices(config, dense)}
    norms = {p: tensors.get(p) for p in layout.norms(config)}
    _check(path, config, dense, {**matrices, **norms}, tensors)
    files = _tokenizer_files(path, metadata, tokenizer)
    inputs |= {f"tokenizer/{n}": file for n, file in files.items() if isinstance(file, Path)}
    return Source(
        name=path.name,
        revision=None,
        raw=raw,
        dense=dense,
        matrices={p: m for p, m in matrices.items() if m is not None},
        norms={p: _minus_one(n) for p, n in norms.items() if n is not None},
        files=files,
        inputs=inputs,
        head=layers,
        biases=biases,
    )


def _check_kind(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> None:
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise EmbeddingGemmaError(
            f"{path} is one of {parts!r:.20} parts: join them with "
            "`llama-gguf-split --merge FIRST.gguf NEW.gguf`"
        )
    architecture = metadata.get("general.architecture")
    # Without its dense head Ollama's gemma3 is the causal language model.
    if architecture != ARCHITECTURE and not (architecture == OLLAMA and "dense.0" in tensors):
        raise EmbeddingGemmaError(
            f"{path}: expected architecture {ARCHITECTURE}, or {OLLAMA} with a dense head, "
            f"got {architecture!r:.80}"
        )


def _minus_one(norm: GgufTensor) -> GgufTensor:
    return GgufTensor(norm.path, norm.kind, norm.shape, norm.offset, minus=1)


def _path_of(name: str) -> str:
    fixed = {
        "token_embd.weight": layout.TABLE,
        "output_norm.weight": "norm",
        "dense_2.weight": "dense.0",
        "dense_3.weight": "dense.1",
        "dense.0.weight": "dense.0",  # Ollama's names
        "dense.1.weight": "dense.1",
    }
    if name.startswith("blk."):
        _, layer, part = (*name.removesuffix(".weight").split(".", 2), "", "")[:3]
        for ours, theirs in NAMES.items():
            if part == theirs:
                return f"layers.{layer}.{ours}"
    return fixed.get(name, name)


def _config(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]
) -> dict[str, Any]:
    """The file's metadata as a config.json."""
    architecture = metadata["general.architecture"]
    found = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    if architecture == OLLAMA:
        found = OLLAMA_DEFAULTS | {OLLAMA_NAMES.get(key, key): value for key, value in found.items()}

    def value(key: str) -> Any:
        if key not in found:
            raise KeyError(f"{architecture}.{key}")
        return found[key]

    head_dim, eps = value("attention.key_length"), value("attention.layer_norm_rms_epsilon")
    for key, expected in {
        "pooling_type": 1,  # the mean
        "rope.dimension_count": head_dim,
        "attention.value_length": head_dim,
    }.items():
        if found.get(key, expected) != expected:
            raise EmbeddingGemmaError(
                f"{path}: expected {architecture}.{key} {expected!r:.40}, as in every EmbeddingGemma, "
                f"got {found[key]!r:.40}"
            )
    return {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "vocab_size": tensors[layout.TABLE].shape[0],
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,  # llama.cpp scales by the head's size
        "rms_norm_eps": round(eps, 12) if isinstance(eps, float) else eps,  # a float32 in the file
        "max_position_embeddings": value("context_length"),
        "sliding_window": value("attention.sliding_window"),
        **_layer_types(found.get("attention.sliding_window_pattern", 6)),
        "rope_theta": value("rope.freq_base"),
        "rope_local_base_freq": found.get("rope.freq_base_swa", 10_000.0),
        "rope_scaling": _rope_scaling(found),
        "attn_logit_softcapping": found.get("attn_logit_softcapping"),
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _layer_types(pattern: Any) -> dict[str, Any]:
    """Every sixth layer sees all in llama.cpp's code, unless the file says which: one truth a layer."""
    if not isinstance(pattern, list):
        return {"sliding_window_pattern": pattern}
    kinds = ("full_attention", "sliding_attention")
    return {"layer_types": [kinds[slides is True] for slides in pattern]}


def _rope_scaling(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """As transformers writes it. In llama.cpp a factor of 0 is none, and no type is linear."""
    factor = found.get("rope.scaling.factor", 0) or 1.0
    kind = found.get("rope.scaling.type", "linear")
    return None if kind == "none" or factor == 1 else {"rope_type": kind, "factor": factor}


def _check(
    path: Path,
    config: Config,
    dense: tuple[int, ...],
    found: Mapping[str, Matrix | None],
    tensors: Mapping[str, GgufTensor],
) -> None:
    expected = {**layout.matrices(config, dense), **layout.norms(config)}
    problems = [f"missing {p}" for p, m in found.items() if m is None]
    problems += [
        f"{p} {list(m.shape)} instead of {list(expected[p])}"
        for p, m in found.items()
        if m is not None and m.shape != expected[p]
    ]
    problems += [f"left over {p!r:.80}" for p in sorted(tensors.keys() - expected.keys())]
    problems += [f"{p} packed instead of floats" for p, m in found.items() if _packed_norm(m)]
    if problems:
        raise EmbeddingGemmaError(
            f"{path} does not hold the tensors its metadata describes: {'; '.join(problems[:8])}"
        )


def _packed_norm(matrix: Matrix | None) -> bool:
    return matrix is not None and len(matrix.shape) == 1 and matrix.settings is not None


def _tokenizer_files(
    path: Path, metadata: Mapping[str, Any], tokenizer: str | Path | None
) -> dict[str, Path | bytes]:
    if tokenizer is not None:
        folder = Path(tokenizer).expanduser()
        files: dict[str, Path | bytes] = {
            name: folder / name for name in COPIED if "token" in name and (folder / name).is_file()
        }
        if not files.keys() & {"tokenizer.json", "tokenizer.model"}:
            raise EmbeddingGemmaError(f"{folder} has neither tokenizer.json nor tokenizer.model")
        return files

    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    tokens, scores, kinds = (
        part if isinstance(part, list) else []
        for part in (value("tokens"), value("scores"), value("token_type"))
    )
    whole = (
        len(tokens) == len(scores) == len(kinds) >= 4
        and all(isinstance(token, str) for token in tokens)
        and all(isinstance(score, float) and math.isfinite(score) for score in scores)
        and set(kinds) <= set(range(1, 7))  # the types that sentencepiece knows
    )
    if value("model") != "llama" or not whole:
        raise EmbeddingGemmaError(
            f"{path} carries no sentencepiece tokenizer: give a folder that has one, --tokenizer"
        )
    for key, expected in GEMMA_TOKENIZER.items():
        if value(key, expected) != expected:
            raise EmbeddingGemmaError(
                f"{path}: expected tokenizer.ggml.{key} {expected}, got {value(key)!r:.40}: give a "
                "folder with the tokenizer that is meant, --tokenizer"
            )
    config: dict[str, Any] = {"tokenizer_class": "GemmaTokenizer"}
    config |= {key: bool(value(key, True)) for key in ("add_bos_token", "add_eos_token")}
    return {
        "tokenizer.model": model_proto(tokens, scores, kinds),
        "tokenizer_config.json": as_json(config).encode(),
    }
