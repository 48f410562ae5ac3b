"""GGUF files convert exactly, or are refused."""

import json
from pathlib import Path

import checkpoints
import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.convert import convert
from mlx_embeddinggemma.convert.gguf_file import NAMES, read_gguf
from safetensors.numpy import load_file
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError
from mlx_embeddinggemma.config import Config

TEXTS = ["Mars is the red planet.", "Простой текст", ""]


def write_gguf(
    folder: Path, out: Path, kind: str, *, heads=(2, 3), extra=lambda writer: None, ollama=False
) -> Path:
    """A gemma-embedding file from a folder, by the gguf package's writer; or gemma3, as Ollama's."""
    cfg = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "gemma3" if ollama else "gemma-embedding")
    writer.add_context_length(cfg["max_position_embeddings"])
    writer.add_embedding_length(cfg["hidden_size"])
    writer.add_block_count(cfg["num_hidden_layers"])
    writer.add_feed_forward_length(cfg["intermediate_size"])
    writer.add_head_count(cfg["num_attention_heads"])
    writer.add_head_count_kv(cfg["num_key_value_heads"])
    writer.add_key_length(cfg["head_dim"])
    writer.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
    if ollama:
        writer.add_float32("gemma3.rope.global.freq_base", cfg["rope_theta"])
        writer.add_float32("gemma3.rope.local.freq_base", cfg["rope_local_base_freq"])
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        slides = [kind == "sliding_attention" for kind in cfg["layer_types"]]
        writer.add_array("gemma3.attention.sliding_window_pattern", slides)
    else:
        writer.add_rope_freq_base(cfg["rope_theta"])
    writer.add_sliding_window(cfg["sliding_window"])
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    names |= {
        f"layers.{i}.{ours}": f"blk.{i}.{theirs}"
        for i in range(cfg["num_hidden_layers"])
        for ours, theirs in NAMES.items()
    }
    tensors = load_file(folder / "model.safetensors")
    found = {f"{names[n.removesuffix('.weight')]}.weight": x for n, x in tensors.items()}
    for i in heads:
        dense = load_file(folder / f"{i}_Dense" / "model.safetensors")["linear.weight"]
        found[f"dense.{i - 2}.weight" if ollama else f"dense_{i}.weight"] = dense
    extra(writer)
    ggml = gguf.GGMLQuantizationType[kind]
    for name, x in found.items():
        if x.ndim == 1:
            writer.add_tensor(name, x + 1)
        elif kind == "F32":
            writer.add_tensor(name, x)
        else:
            writer.add_tensor(name, gguf.quants.quantize(x, ggml), raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [("F32", "fp32"), ("F16", "fp32"), ("BF16", "fp32"), ("BF16", "bf16"), ("Q4_0", "q4_0"),
     ("Q8_0", "q8_0"), ("Q4_0", "fp32"), ("Q8_0", "fp32")],
)  # fmt: skip
def test_an_import_is_exact(kind, recipe, tiny, tmp_path):
    file = write_gguf(tiny, tmp_path / "model.gguf", kind)
    report = convert(file, tmp_path / "out", recipe=recipe, tokenizer=tiny)
    assert report.fidelity[768].worst > (0.999 if recipe == "bf16" else 0.999999)
    written = mx.load(str(tmp_path / "out" / "model.safetensors"))
    ggml = gguf.GGMLQuantizationType[kind]
    for name, x in load_file(tiny / "model.safetensors").items():
        path = f"model.{name.removesuffix('.weight')}"
        if x.ndim == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(x, ggml), ggml)
            got = written[f"{path}.weight"]
            if f"{path}.scales" in written:
                packed = (written[f"{path}.{n}"] for n in ("weight", "scales", "biases"))
                got = mx.dequantize(*packed, 32, 4 if kind == "Q4_0" else 8)
            np.testing.assert_array_equal(np.array(got.astype(mx.float32)), expected, err_msg=path)
        elif recipe != "bf16":
            np.testing.assert_array_equal(
                np.array(written[f"{path}.weight"]), (x + 1) - 1, err_msg=path
            )
    assert np.isfinite(EmbeddingGemma(tmp_path / "out").encode(TEXTS)).all()


def test_a_file_without_the_head_is_refused_and_can_borrow_one(tiny, tmp_path):
    file = write_gguf(tiny, tmp_path / "model.gguf", "F32", heads=())
    with pytest.raises(EmbeddingGemmaError, match="--dense-from"):
        convert(file, tmp_path / "out", tokenizer=tiny)
    convert(file, tmp_path / "out", recipe="fp32", tokenizer=tiny, dense_from=tiny)
    a, b = (EmbeddingGemma(folder).encode(TEXTS) for folder in (tiny, tmp_path / "out"))
    assert_near(a, b)


def test_the_networks_shape_comes_from_the_metadata(tiny, tmp_path):
    file = write_gguf(tiny, tmp_path / "model.gguf", "F32")
    convert(file, tmp_path / "out", recipe="fp32", tokenizer=tiny)
    raw, ours = (json.loads((f / "config.json").read_text()) for f in (tiny, tmp_path / "out"))
    assert Config.from_dict(ours) == Config.from_dict(raw)


def test_a_files_own_tokenizer_gives_the_same_ids(tiny, tmp_path):
    raw = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].__getitem__)

    def tokenizer(writer: gguf.GGUFWriter) -> None:
        kinds = [3, 3, 3, 2, *(6 if piece.startswith("<0x") else 1 for piece in pieces[4:])]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces)
        writer.add_token_scores([-float(i) for i in range(len(pieces))])
        writer.add_token_types(kinds)

    file = write_gguf(tiny, tmp_path / "model.gguf", "F32", extra=tokenizer)
    convert(file, tmp_path / "out", recipe="fp32")
    written = {p.name for p in (tmp_path / "out").glob("token*")}
    assert written == {"tokenizer.model", "tokenizer_config.json"}
    reference, own = EmbeddingGemma(tiny), EmbeddingGemma(tmp_path / "out")
    texts = [*TEXTS, "the other  one\n\t<bos> in there", "\0 ▁▁ 🏰"]
    assert own.tokenize(texts) == reference.tokenize(texts)
    assert_near(own.encode(texts), reference.encode(texts))


def test_the_order_of_the_heads_tensors_in_the_file_does_not_matter(tmp_path):
    source = checkpoints.write_tiny(tmp_path / "source", num_hidden_layers=1)
    files = [
        write_gguf(source, tmp_path / f"{i}.gguf", "F32", heads=heads)
        for i, heads in enumerate([(2, 3), (3, 2)])
    ]
    for file in files:
        convert(file, tmp_path / file.stem, recipe="fp32", tokenizer=source)
    a, b = (load_file(tmp_path / file.stem / "model.safetensors") for file in files)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_file_without_tokenizer_is_refused_with_the_remedy(tiny, tmp_path):
    file = write_gguf(tiny, tmp_path / "model.gguf", "F32")
    with pytest.raises(EmbeddingGemmaError, match="--tokenizer"):
        convert(file, tmp_path / "out")


def test_hostile_counts_and_lengths_are_refused(tmp_path):
    source = checkpoints.write_tiny(tmp_path / "source")
    sound = write_gguf(source, tmp_path / "model.gguf", "F32").read_bytes()
    file = tmp_path / "bad.gguf"
    huge = (2**60).to_bytes(8, "little")
    bad = [b"", b"GGUF", sound[:20], sound[:400], sound[: len(sound) // 2], b"ggml" + sound[4:]]
    bad += [sound[:at] + huge + sound[at + 8 :] for at in (8, 16, 24)]
    for data in bad:
        file.write_bytes(data)
        with pytest.raises(EmbeddingGemmaError):
            read_gguf(file)
    rng = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(sound[:4000])
        for at in rng.integers(4, 4000, 8):
            damaged[at] = rng.integers(256)
        file.write_bytes(damaged)
        with pytest.raises(EmbeddingGemmaError):
            read_gguf(file)
