"""What other tools write: GGUF under any name, wrappers' prefixes, buffers and heads beside weights."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import gguf
import mlx.core as mx
import numpy as np
import pytest
import test_convert_damaged as made
from mlx_embeddinggemma.convert import convert
from mlx_embeddinggemma.convert.gguf_reader import TYPES, UNREAD
from safetensors.numpy import load_file, save_file
from test_convert_gguf import write_gguf

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

TEXTS = ["the first text", "in the thin thing " * 9, ""]
SMALL = {"num_hidden_layers": 2, "_sliding_window_pattern": 2}
SMALL |= {"rope_theta": 5e5, "rope_local_base_freq": 5e3}  # no default of any tool


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return checkpoints.write_tiny(tmp_path_factory.mktemp("others") / "source", **SMALL)


@pytest.fixture(scope="module")
def expected(source) -> np.ndarray:
    return EmbeddingGemma(source).encode(TEXTS)


ONE = {"num_hidden_layers": 1}


def close(folder: Path, expected: np.ndarray) -> bool:
    return bool(np.abs(EmbeddingGemma(folder).encode(TEXTS) - expected).max() < 2e-6)


def refused(folder: Path, says: str) -> None:
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        EmbeddingGemma(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


# GGUF


@pytest.mark.parametrize(
    "name", ["sha256-0f1e2d", "MODEL.GGUF", "model", "model.bin", "model.safetensors"]
)
def test_a_gguf_is_known_by_its_content(name, tmp_path):
    one = checkpoints.write_tiny(tmp_path / "one", **ONE)
    file = write_gguf(one, tmp_path / name, "F32")
    link = tmp_path / "link"
    link.symlink_to(file)
    for given in (str(file), link):
        convert(given, tmp_path / "out", recipe="fp32", tokenizer=one, force=True)
        assert close(tmp_path / "out", EmbeddingGemma(one).encode(TEXTS))
        with pytest.raises(
            EmbeddingGemmaError, match="is a GGUF file.*`mlx-embeddinggemma convert .*FOLDER"
        ):
            EmbeddingGemma(given)


def test_a_folder_of_a_gguf_names_the_file(tmp_path):
    (tmp_path / "model-F16.gguf").write_bytes(b"GGUF")
    says = f"no config.json, but model-F16.gguf: .* convert {tmp_path}/model-F16.gguf FOLDER"
    for read in (EmbeddingGemma, lambda folder: convert(folder, tmp_path / "out")):
        with pytest.raises(EmbeddingGemmaError, match=says):
            read(tmp_path)


def test_the_command_says_how_to_read_a_gguf(tmp_path):
    one = checkpoints.write_tiny(tmp_path / "one", **ONE)
    file = write_gguf(one, tmp_path / "sha256-0f1e2d", "F32")
    command = [sys.executable, "-m", "mlx_embeddinggemma", "embed", "x", "--model", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"convert {file} FOLDER" in done.stderr


def test_a_tilde_is_the_home_in_python_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = checkpoints.write_tiny(tmp_path / "one", **ONE)
    write_gguf(one, tmp_path / "model.gguf", "F32", heads=())
    (tmp_path / "own.toml").write_text('[matrices]\n"*" = 32\n')
    convert(
        "~/model.gguf",
        "~/out",
        recipe="~/own.toml",
        dtype="float32",
        tokenizer="~/one",
        dense_from="~/one",
    )
    assert close(tmp_path / "out", EmbeddingGemma(one).encode(TEXTS))
    with pytest.raises(EmbeddingGemmaError, match=f"{tmp_path}/no.txt"):
        convert("~/one", "~/tuned", recipe="4bit-tuned", calibration="~/no.txt")


@pytest.mark.parametrize(
    "argument", ["source", "output", "dense_from", "tokenizer", "recipe", "calibration"]
)
def test_the_home_of_nobody_is_one_line(argument, tmp_path):
    one = checkpoints.write_tiny(tmp_path / "one", **ONE)
    arguments = {"source": one, "output": tmp_path / "out", "recipe": "4bit-tuned"}
    if argument in ("dense_from", "tokenizer"):
        arguments["source"] = write_gguf(one, tmp_path / "model.gguf", "F32")
    with pytest.raises(EmbeddingGemmaError, match="there is no such user, or no home: .~nosuchuser"):
        convert(**arguments | {argument: "~nosuchuser/x.toml"})


@pytest.mark.parametrize("argument", ["dense_from", "tokenizer"])
def test_what_only_a_gguf_needs_is_refused_with_a_folder(argument, source, tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="are for GGUF files, and .*source is none"):
        convert(source, tmp_path / "out", **{argument: source})


def test_ollamas_file_gives_the_vectors_of_its_source(source, expected, tmp_path):
    file = write_gguf(source, tmp_path / "sha256-1", "BF16", ollama=True)
    convert(file, tmp_path / "out", recipe="bf16", tokenizer=source)
    own = json.loads((tmp_path / "out" / "config.json").read_text())
    assert own["layer_types"] == ["sliding_attention", "full_attention"]
    file = write_gguf(source, tmp_path / "sha256-2", "F32", ollama=True)
    convert(file, tmp_path / "floats", recipe="fp32", tokenizer=source)
    assert close(tmp_path / "floats", expected)


def test_what_ollamas_file_leaves_out_is_what_ollama_takes(tmp_path):
    one = checkpoints.write_tiny(tmp_path / "one", head_dim=256, query_pre_attn_scalar=256, **ONE)
    file = write_gguf(one, tmp_path / "sha256-1", "F32", ollama=True)
    left_out = ("rms_epsilon", "key_length", "global.freq_base", "local.freq_base", "window_pattern")
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "less", "gemma3")
    for key, field in reader.fields.items():
        if key.startswith("gemma3.") and not key.endswith(left_out):
            writer.add_uint32(key, field.contents())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data.reshape(tensor.shape[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(tmp_path / "less", tmp_path / "out", recipe="fp32", tokenizer=one)
    assert close(tmp_path / "out", EmbeddingGemma(one).encode(TEXTS))


def test_a_window_that_transformers_halved_is_whole_in_the_output(tmp_path):
    one = checkpoints.write_tiny(tmp_path / "one", sliding_window=257, **ONE)
    file = write_gguf(one, tmp_path / "model.gguf", "F32")
    with pytest.warns(UserWarning, match="sliding_window 257"):
        convert(file, tmp_path / "out", recipe="fp32", tokenizer=one)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] == 512


def test_ollamas_language_model_is_refused(source, tmp_path):
    file = write_gguf(source, tmp_path / "sha256-1", "F32", ollama=True, heads=())
    with pytest.raises(EmbeddingGemmaError, match="gemma3 with a dense head, got 'gemma3'"):
        convert(file, tmp_path / "out", dense_from=source)


def damaged(tmp_path: Path, change, **flags) -> str:
    """What converting says of a small file changed."""
    sound = made.tiny(tmp_path / "sound")
    file = made.as_gguf(sound)
    change(file)
    made.write_gguf(tmp_path / "x.gguf", file)
    with pytest.raises(EmbeddingGemmaError) as caught:
        convert(tmp_path / "x.gguf", tmp_path / "out", tokenizer=sound, **flags)
    assert not (tmp_path / "out").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def test_every_type_of_ggml_is_read_or_named():
    known = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    assert known == {kind: name for kind, (name, _, _) in TYPES.items()} | UNREAD


@pytest.mark.parametrize("kind", [3, 10, 12, 14, 20, 39, 99])
def test_a_type_that_is_not_read_is_named_with_the_way_out(kind, tmp_path):
    said = damaged(tmp_path, lambda g: g.info("blk.0.ffn_up.weight", kind=kind))
    assert f"'blk.0.ffn_up.weight' is {UNREAD.get(kind, 'of ggml type 99')}" in said
    assert "expected one of F32, F16, Q4_0, Q8_0, BF16" in said
    assert "llama-quantize --allow-requantize" in said


def put(file: made.Gguf, key: str, value: bytes) -> None:
    file.set(f"gemma-embedding.{key}", value)


def text(value: str) -> bytes:
    return struct.pack("<I", 8) + made.string(value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: vars(g).update(version=1), "version 1: convert the model again"),
        (lambda g: vars(g).update(version=4), "version 4"),
        (lambda g: vars(g).update(version=2 << 24), "gguf-convert-endian FILE little"),
        (lambda g: g.set("split.count", made.u32(3)), "one of 3 parts: join .*gguf-split --merge"),
        (lambda g: put(g, "pooling_type", made.u32(2)), "gemma-embedding.pooling_type 1, .* got 2"),
        (lambda g: put(g, "pooling_type", made.u32(0)), "gemma-embedding.pooling_type 1, .* got 0"),
        (lambda g: put(g, "rope.scaling.factor", made.f32(8)), "metadata: .*'linear'. with factor 8"),
        (lambda g: [put(g, "rope.scaling." + k, v)
                    for k, v in (("factor", made.f32(2)), ("type", text("yarn")))],
         "got .'yarn'. with factor 2"),
        (lambda g: put(g, "attn_logit_softcapping", made.f32(50)), "softcapping None, got 50.0"),
        (lambda g: put(g, "rope.dimension_count", made.u32(32)), "dimension_count 64, .* got 32"),
        (lambda g: put(g, "attention.value_length", made.u32(32)), "value_length 64, .* got 32"),
        (lambda g: vars(g).update(magic=b"vers"), "Git LFS pointer: run `git lfs pull`"),
        (lambda g: vars(g).update(magic=b'{"sc'), "a GGUF file or .*folder, got b'{\"sc' at"),
        (lambda g: g.set("general.architecture", text("x" * 10**5)), "got 'xxx"),
    ],
)  # fmt: skip
def test_a_gguf_of_another_kind_is_refused_by_name(change, says, tmp_path):
    said = damaged(tmp_path, change)
    assert made.re.search(says, said), said
    assert len(said) < 500


@pytest.mark.parametrize(
    "change",
    [
        lambda g: put(g, "rope.scaling.factor", made.f32(0)),
        lambda g: put(g, "rope.scaling.factor", made.f32(1)),
        lambda g: put(g, "rope.scaling.type", text("none")),
        lambda g: put(g, "pooling_type", made.u32(1)),
        lambda g: g.set("split.count", made.u32(0)),
        lambda g: put(g, "rope.freq_base_swa", made.f32(1e4)),
        lambda g: put(g, "attention.sliding_window_pattern", made.array(7, 1, b"\1")),
        lambda g: (
            g.infos.append(("output.weight", (64, 512), 0, len(g.data)))
            or vars(g).update(data=g.data + bytes(4 * 64 * 512))
        ),
    ],
)
def test_what_changes_nothing_in_a_gguf_is_passed_over(change, tmp_path):
    sound = made.tiny(tmp_path / "sound")
    file = made.as_gguf(sound)
    change(file)
    made.write_gguf(tmp_path / "x.gguf", file)
    convert(tmp_path / "x.gguf", tmp_path / "out", recipe="fp32", tokenizer=sound)
    assert close(tmp_path / "out", EmbeddingGemma(sound).encode(TEXTS))


# safetensors


def rewritten(source: Path, out: Path, change, **config) -> Path:
    """A copy whose root tensors a function changed, in place or into what it returns."""
    folder = checkpoints.edit_config(source, out, **config)
    found = load_file(folder / "model.safetensors")
    changed = change(found)
    os.unlink(folder / "model.safetensors")
    save_file(
        found if changed is None else changed, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder


@pytest.mark.parametrize(
    "prefix",
    ["model.", "language_model.", "language_model.model.", "model.language_model.", "_orig_mod.",
     "module.", "0.auto_model.", "base_model.model.model."],
)  # fmt: skip
def test_a_wrappers_prefix_comes_off(prefix, source, expected, tmp_path):
    head = f"{prefix}lm_head.weight"

    def change(found):
        return {prefix + name: x for name, x in found.items()} | {head: found["embed_tokens.weight"]}

    folder = rewritten(source, tmp_path / "m", change)
    assert close(folder, expected)
    assert close(checkpoints.shard(folder, tmp_path / "shards"), expected)


def rotary(theta: float, d: int = 64) -> np.ndarray:
    return (1 / theta ** (np.arange(0, d, 2) / d)).astype(np.float32)


FULL, LOCAL = rotary(5e5), rotary(5e3)
BUFFERS = {
    "a tied head": {"lm_head.weight": lambda found: found["embed_tokens.weight"]},
    "a head of its own": {"lm_head.weight": np.ones((512, 192), np.float32), "lm_head.bias": FULL},
    "a packed head": {"lm_head.weight": np.ones((512, 24), np.uint32), "lm_head.scales": FULL},
    "rotary": {"rotary_emb.inv_freq": FULL, "rotary_emb_local.inv_freq": LOCAL},
    "rotary by type": {
        f"rotary_emb.{kind}_{original}inv_freq": x
        for kind, x in (("full_attention", FULL), ("sliding_attention", LOCAL))
        for original in ("", "original_")
    },
    "rotary by layer": {
        f"layers.{i}.self_attn.rotary_emb.inv_freq": FULL if i else LOCAL for i in range(2)
    },
    "rotary in 16 bits": {"rotary_emb.inv_freq": FULL.astype(np.float16)},
    "scale": {"embed_tokens.embed_scale": np.array(192**0.5, np.float32)},
    "scale in 16 bits": {"embed_scale": np.array([192**0.5], np.float16)},
    "positions": {"embeddings.position_ids": np.arange(2048)[None]},
    "positions in 32 bits": {"position_ids": np.arange(2048, dtype=np.int32)},
    "a mask": {"layers.0.self_attn.mask": np.tril(np.ones((8, 8), bool))},
}  # fmt: skip


def with_buffers(source: Path, out: Path, buffers: dict) -> Path:
    def change(found):
        found |= {k: np.array(v(found) if callable(v) else v) for k, v in buffers.items()}

    return rewritten(source, out, change)


@pytest.mark.parametrize("case", BUFFERS)
def test_buffers_that_no_vector_depends_on_load(case, source, expected, tmp_path):
    folder = with_buffers(source, tmp_path / "m", BUFFERS[case])
    assert close(folder, expected)
    convert(folder, tmp_path / "out", recipe="fp32")
    assert close(tmp_path / "out", expected)
    assert not BUFFERS[case].keys() & load_file(tmp_path / "out" / "model.safetensors").keys()


def test_sentence_transformers_passes_them_over_too(source, tmp_path):
    reference = pytest.importorskip("reference")
    folder = with_buffers(
        source, tmp_path / "m", {k: v for part in BUFFERS.values() for k, v in part.items()}
    )
    expected = reference.sentence_transformer(folder).encode(TEXTS, normalize_embeddings=True)
    assert close(folder, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotary_emb.inv_freq", LOCAL),
        ("rotary_emb.inv_freq", FULL / 8),
        ("rotary_emb.inv_freq", FULL * np.nan),
        ("rotary_emb.inv_freq", rotary(5.1e5)),
        ("rotary_emb.inv_freq", FULL[:-1]),
        ("rotary_emb.inv_freq", FULL.astype(np.int8)),
        ("rotary_emb_local.inv_freq", FULL),
        ("rotary_emb.sliding_attention_inv_freq", FULL),
        ("layers.1.self_attn.rotary_emb.inv_freq", LOCAL),
        ("layers.0.self_attn.rotary_emb.inv_freq", FULL),
        ("embed_tokens.embed_scale", np.array(1, np.float32)),
        ("embed_tokens.embed_scale", np.array(13.9, np.float32)),
        ("embed_scale", np.full(192, 192**0.5, np.float32)),
    ],
)
def test_a_buffer_that_contradicts_the_config_is_refused(name, value, source, tmp_path):
    folder = with_buffers(source, tmp_path / "m", {name: value})
    refused(folder, f"'{name}' is not what config.json leads to: expected .* values from")


@pytest.mark.parametrize(
    "name", ["layers.2.self_attn.rotary_emb.inv_freq", "rotary_emb.cos_cached", "head.weight"]
)
def test_anything_else_is_left_over(name, source, tmp_path):
    refused(with_buffers(source, tmp_path / "m", {name: FULL}), f"left over 1: {name}")


def test_float64_weights_load_and_convert(source, expected, tmp_path):
    reference = pytest.importorskip("reference")

    def widen(found):
        return {name: x.astype(np.float64) for name, x in found.items()}

    folder = rewritten(source, tmp_path / "m", widen)
    path = folder / "2_Dense" / "model.safetensors"
    head = widen(load_file(path))
    path.unlink()
    save_file(head, path)
    assert close(folder, expected)
    assert close(folder, reference.sentence_transformer(folder).encode(TEXTS))
    for whose in (source, folder):
        convert(whose, tmp_path / f"{whose.name}-8bit", recipe="8bit")
    one, other = (tmp_path / f"{whose.name}-8bit" / "model.safetensors" for whose in (source, folder))
    assert one.read_bytes() == other.read_bytes()


def test_a_float64_too_large_for_float32_is_refused(source, tmp_path):
    def change(found):
        found["norm.weight"] = found["norm.weight"].astype(np.float64)
        found["norm.weight"][3] = 1e300

    refused(rewritten(source, tmp_path / "m", change), "NaN or infinite weights in 1: norm.weight")


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.int8, np.uint16, np.uint64, bool])
def test_a_weight_of_whole_numbers_is_named(dtype, source, tmp_path):
    def change(found):
        found["norm.weight"] = found["norm.weight"].astype(dtype)

    refused(rewritten(source, tmp_path / "m", change), "wrong dtype 1: norm.weight")


@pytest.mark.parametrize("same", [True, False])
def test_a_tensor_under_two_names_is_refused_by_name(same, source, tmp_path):
    def change(found):
        found["model.norm.weight"] = found["norm.weight"] + (not same)

    refused(
        rewritten(source, tmp_path / "m", change),
        "expected each tensor once, got 'norm.weight' under two",
    )


def test_an_adapter_never_merged_is_told_the_way(source, tmp_path):
    def change(found):
        q = "layers.0.self_attn.q_proj"
        found[f"{q}.base_layer.weight"] = found.pop(f"{q}.weight")
        found[f"{q}.lora_A.default.weight"] = np.zeros((8, 192), np.float32)

    refused(rewritten(source, tmp_path / "m", change), "never merged: .*merge_and_unload")


@pytest.mark.parametrize(
    ("mode", "bits", "group", "part", "dtype"),
    [
        ("affine", 4, 64, "scales", mx.uint8),
        ("affine", 4, 64, "biases", mx.uint8),
        ("affine", 8, 32, "scales", mx.int64),
        ("affine", 4, 64, "weight", mx.int32),
        ("mxfp4", 4, 32, "scales", mx.float32),
        ("mxfp8", 8, 32, "scales", mx.bfloat16),
        ("nvfp4", 4, 16, "scales", mx.int8),
    ],
)
def test_packed_weights_of_another_type_are_refused(mode, bits, group, part, dtype, source, tmp_path):
    folder = checkpoints.as_mlx_community(
        source, tmp_path / "m", bits=bits, group_size=group, mode=mode
    )
    found = mx.load(str(folder / "model.safetensors"))
    mx.eval(found)
    name = f"layers.0.mlp.up_proj.{part}"
    found[f"model.{name}"] = found[f"model.{name}"].astype(dtype)
    os.unlink(folder / "model.safetensors")
    mx.save_safetensors(str(folder / "model.safetensors"), found)
    refused(folder, f"wrong dtype 1: {name} ")


@pytest.mark.parametrize(
    "table",
    [{"mode": "mxfp4", "bits": 8}, {"mode": "mxfp8"}, {"mode": "nvfp4"}, {"group_size": 16},
     {"mode": ["affine"]}, {"bits": True}, {"bits": "4"}, {"bits": [4]}, {"mode": "x" * 10**5}],
    ids=lambda t: str(t)[:30],
)  # fmt: skip
def test_a_quantization_that_mlx_has_not_is_refused(table, source, tmp_path):
    folder = checkpoints.as_mlx_community(source, tmp_path / "m", bits=4, group_size=32)
    raw = json.loads((folder / "config.json").read_text())
    checkpoints.write_json(folder / "config.json", raw | {"quantization": raw["quantization"] | table})
    refused(folder, "expected for embed_tokens a quantization that MLX has")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.reshape(-1)[0], r"dense.0.weight a matrix, got shape \[\]"),
        (lambda w: w.reshape(-1), r"dense.0.weight a matrix, got shape \[49152\]"),
        (lambda w: w[None], r"dense.0.weight a matrix, got shape \[1, 256, 192\]"),
        (lambda w: w.T, r"dense.0.weight \[192, 256\] instead of \[192, 192\]"),
        (lambda w: w[:, :-1], r"dense.0.weight \[256, 191\] instead of \[256, 192\]"),
    ],
)
@pytest.mark.parametrize("beside", [True, False], ids=["in its folder", "in the root file"])
def test_a_head_of_another_shape_is_refused(beside, change, says, source, tmp_path):
    def put(found):
        found |= {
            n: np.array(change(x), order="C") if n == "dense.0.weight" else x for n, x in head.items()
        }

    head = {n: x for n, x in checkpoints.all_tensors(source).items() if n.startswith("dense.")}
    if beside:
        folder = checkpoints.edit_config(source, tmp_path / "m")
        path = folder / "2_Dense" / "model.safetensors"
        path.unlink()
        save_file({"linear.weight": np.array(change(head["dense.0.weight"]), order="C")}, path)
    else:
        folder = rewritten(source, tmp_path / "m", put)
    refused(folder, says)


def test_a_head_in_the_wrong_order_is_refused(source, tmp_path):
    folder = checkpoints.edit_config(source, tmp_path / "m")
    (folder / "2_Dense").rename(folder / "x")
    (folder / "3_Dense").rename(folder / "2_Dense")
    (folder / "x").rename(folder / "3_Dense")
    refused(folder, r"dense.0.weight \[768, 256\] instead of \[768, 192\]")


# Headers made to be slow, or to be quoted at length


NORM = "norm.weight"
HEADERS = {
    "900,000 sizes": lambda h: h[NORM].update(shape=[9] * 900_000),
    "900,000 large sizes": lambda h: h[NORM].update(shape=[99] * 600_000),
    "nine sizes": lambda h: h[NORM].update(shape=[1] * 9),
    "a size of 4,000 digits": lambda h: h[NORM].update(shape=[10**4000]),
    "a size of 2^63": lambda h: h[NORM].update(shape=[2**63]),
    "eight sizes of 2^62": lambda h: h[NORM].update(shape=[2**62] * 8),
    "a size that is true": lambda h: h[NORM].update(shape=[True, 192]),
    "sizes a string": lambda h: h[NORM].update(shape="9" * 10**6),
    "sizes an object": lambda h: h[NORM].update(shape={"192": 192}),
    "an offset of 400 digits": lambda h: h[NORM].update(data_offsets=[10**400, 10**400 + 768]),
    "an offset of -2^70": lambda h: h[NORM].update(data_offsets=[-(2**70), 768 - 2**70]),
    "an offset of -0.5": lambda h: h[NORM].update(data_offsets=[-0.5, 767.5]),
    "offsets that are true": lambda h: h[NORM].update(data_offsets=[False, True]),
    "900,000 offsets": lambda h: h[NORM].update(data_offsets=[0] * 600_000),
    "a dtype of a megabyte": lambda h: h[NORM].update(dtype="F" * 10**6),
    "a dtype of lines": lambda h: h[NORM].update(dtype="F32\n\n\n"),
    "a name of a megabyte": lambda h: h.update({"n" * 10**6: h.pop(NORM)}),
    "a name of lines": lambda h: h.update({"\n\r\u2028\x1b[2J" * 99: h.pop(NORM)}),
    "half a character": lambda h: h.update({"\ud800": h.pop(NORM)}),
    "30,000 names": lambda h: h.update({f"x{i}": 0 for i in range(30_000)}),
    "an entry of null": lambda h: h.update({NORM: None}),
    "nested deeply": lambda h: "[" * 10**6,
    "objects nested deeply": lambda h: '{"a":' * 300_000,
    "a name 20,000 times": lambda h: "{" + ",".join(['"a":1'] * 20_000) + "}",
    "4,000 digits 400 times": lambda h: json.dumps({"a": [10**4000] * 400}),
    "4,400 digits": lambda h: '{"a":' + "1" * 4400 + "}",
    "NaN": lambda h: h[NORM].update(data_offsets=[float("nan")] * 2),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header_is_one_short_line_in_no_time(case, source, tmp_path):
    def damage(entries):
        text = HEADERS[case](entries)
        return text if isinstance(text, str) else json.dumps(entries, separators=(",", ":"))

    folder = checkpoints.edit_config(source, tmp_path / "m")
    made.header(damage)(folder)
    start = time.process_time()
    with pytest.raises(EmbeddingGemmaError) as caught:
        EmbeddingGemma(folder)
    said = str(caught.value)
    assert time.process_time() - start < 3
    assert said.isprintable() and said.encode("utf-8")
    assert len(said) < 700


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[matrices]\n" + "\n".join(f'"*.{i}.*" = 4' for i in range(50_000)),
            "at most 65,536 bytes",
        ),
        ("[matrices]\n" + f'"{"x" * 10**5}" = 7', "1,000 a line"),
        ("[matrices]\n" + f'"*" = "{"x" * 900}"', "got 'xxx"),
        (f"{'x' * 900} = 1", "got .*xxx"),
        (f'dtype = "{"x" * 900}"\n[matrices]\n"*" = 4', "got 'xxx"),
    ],
    ids=["50,000 patterns", "a long pattern", "a long format", "a long key", "a long dtype"],
)
def test_a_hostile_recipe_is_one_short_line_in_no_time(text, says, source, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    start = time.process_time()
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        convert(source, tmp_path / "out", recipe=tmp_path / "own.toml")
    assert time.process_time() - start < 5 and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["x" * 300, "x" * 10**6, "a\0b", "..", ".", "1_Pooling", "\ud800"])
def test_a_shards_name_that_is_no_file_is_one_short_line(name, source, tmp_path):
    folder = checkpoints.shard(source, tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"]["norm.weight"] = name
    index.write_text(json.dumps(raw))
    with pytest.raises(EmbeddingGemmaError, match="lacks |a file beside it") as caught:
        EmbeddingGemma(folder)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()
