"""Malformed sources: each is refused in one line that says what was expected and what came instead.

Nothing is written, nothing hangs, and no count or length in a file makes the converter allocate more
than the file itself could fill.
"""

import json
import re
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.convert import convert
from mlx_embeddinggemma.convert.gguf_file import NAMES
from safetensors.numpy import load_file, save_file

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

UP = "layers.0.mlp.up_proj.weight"
Damage = Callable[[Path], object]


def tiny(folder: Path, **overrides: Any) -> Path:
    """300 kB: a layer, a head, square matrices."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "head_dim": 64}
    sizes |= {"num_attention_heads": 1, "query_pre_attn_scalar": 64, "dense": (64, 64)}
    return checkpoints.write_tiny(folder, **sizes | overrides)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return tiny(tmp_path_factory.mktemp("sound") / "source")


@pytest.fixture(autouse=True)
def short_sample(monkeypatch):
    sample = [f"sample text number {i} of twelve" for i in range(12)]
    monkeypatch.setattr("mlx_embeddinggemma.convert.conversion.SAMPLE", sample)


def refused(source: Path, output: Path, says: str, *, room: int = 1_000_000, **flags: Any) -> None:
    """Converting says `says` in one line, writes nothing, and needs neither time nor memory.

    `room` is for what any checkpoint of this size needs: parsed headers, the plan.
    """
    files = [source] if source.is_file() else source.rglob("*")
    size = sum(path.stat().st_size for path in files if path.is_file())
    beside = sorted(output.parent.iterdir())
    mx.reset_peak_memory()
    held, seconds = mx.get_active_memory(), time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(EmbeddingGemmaError) as caught:
            convert(source, output, **{"recipe": "bf16", **flags})
        peak = tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() - held
    finally:
        tracemalloc.stop()
    seconds = time.process_time() - seconds
    assert "\n" not in str(caught.value)
    assert re.search(says, str(caught.value)), str(caught.value)
    assert sorted(output.parent.iterdir()) == beside
    assert seconds < 5
    assert peak < size + room


def test_the_undamaged_source_converts(sound, tmp_path):
    assert convert(sound, tmp_path / "out", recipe="bf16").fidelity[64].mean > 0.999


# safetensors


def header_and_data(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(text: str | bytes, data: bytes) -> bytes:
    text = text if isinstance(text, bytes) else text.encode()
    return len(text).to_bytes(8, "little") + text + data


def bytes_of(change: Callable[[bytes], bytes]) -> Damage:
    """The weights' bytes changed."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The parsed header changed, in place or into what the function returns; the data as it was."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        entries, data = header_and_data(path)
        changed = change(entries)
        changed = entries if changed is None else changed
        text = changed if isinstance(changed, str | bytes) else json.dumps(changed)
        path.write_bytes(with_header(text, data))

    return damage


def entry(**changes: Any) -> Damage:
    """One tensor's entry changed; a function is given the entry's old value."""

    def change(entries: dict[str, Any]) -> None:
        for key, value in changes.items():
            entries[UP][key] = value(entries[UP][key]) if callable(value) else value

    return header(change)


def tensors(
    change: Callable[[dict[str, np.ndarray]], object], file: str = "model.safetensors"
) -> Damage:
    """The tensors changed in place and saved soundly."""

    def damage(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file(found, folder / file)

    return damage


def element(value: float) -> Damage:
    def change(found: dict[str, np.ndarray]) -> None:
        found[UP][5, 7] = value

    return tensors(change)


def twice(entries: dict[str, Any]) -> str:
    text = json.dumps(entries)
    return text[:-1] + f', "{UP}": {json.dumps(entries[UP])}}}'


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
SAFETENSORS: dict[str, tuple[Damage, str]] = {
    "empty": (bytes_of(lambda raw: b""), "cut short .0 bytes"),
    "seven bytes": (bytes_of(lambda raw: raw[:7]), "cut short .7 bytes"),
    "length only": (bytes_of(lambda raw: raw[:8]), "cut short .8 bytes"),
    "half a header": (bytes_of(lambda raw: raw[:600]), "cut short .600 bytes"),
    "no data": (
        bytes_of(lambda raw: raw[: 8 + int.from_bytes(raw[:8], "little")]),
        "header describes 249,024 bytes, the file has 1,472",
    ),
    "one byte short": (bytes_of(lambda raw: raw[:-1]), "header describes .* bytes, the file has"),
    "one byte more": (bytes_of(lambda raw: raw + b"x"), "header describes .* bytes, the file has"),
    "half the data": (bytes_of(lambda raw: raw[: len(raw) // 2]), "header describes .* the file has"),
    "header of 2^63 bytes": (
        bytes_of(lambda raw: (2**63).to_bytes(8, "little") + raw[8:]),
        "got 9,223,372,036,854,775,808",
    ),
    "header of no bytes": (bytes_of(lambda raw: bytes(8) + raw[8:]), "got 0:"),
    "header past the end": (
        bytes_of(lambda raw: len(raw).to_bytes(8, "little") + raw[8:]),
        "fits into it .* got 249,024",
    ),
    "git lfs pointer": (bytes_of(lambda raw: LFS), "git lfs pull"),
    "pickle": (bytes_of(lambda raw: b"\x80\x02}q\x00." * 100), "not a safetensors file"),
    "zip": (bytes_of(lambda raw: b"PK\x03\x04" + raw[4:]), "not a safetensors file"),
    "header no JSON": (
        header(lambda h: "{" * 200),
        "expected names with dtype, shape and data_offsets, got Expecting property name",
    ),
    "header 100,000 deep": (header(lambda h: "[" * 100_000), "got maximum recursion depth"),
    "header not UTF-8": (header(lambda h: b'{"\xff\xfe": 1}'), "got 'utf-8' codec"),
    "header a list": (header(lambda h: [1, 2]), "got 'list' object"),
    "header a number": (header(lambda h: "17"), "got 'int' object"),
    "entries are numbers": (header(lambda h: {UP: 5}), "got 'int' object"),
    "number of 5,000 digits": (
        header(lambda h: json.dumps(h).replace("[64, 64]", f"[{'9' * 5000}]")),
        "got Exceeds the limit",
    ),
    "tensor missing": (tensors(lambda t: t.pop(UP)), f"missing 1: {UP}"),
    "tensor missing, its bytes there": (
        header(lambda h: h.pop(UP) and None),
        "expected 256 bytes from [0-9,]+ on, got",
    ),
    "tensor extra": (tensors(lambda t: t.update({"head.weight": t[UP]})), "left over 1: head.weight"),
    "tensor renamed": (
        tensors(lambda t: t.update({"layers.0.mlp.upp.weight": t.pop(UP)})),
        "missing.*left over",
    ),
    "tensor twice, same place": (header(twice), "got a name that comes twice"),
    "tensor in two prefixes": (
        tensors(lambda t: t.update({f"model.{UP}": t[UP]})),
        "expected each tensor once",
    ),
    "shape transposed": (
        tensors(lambda t: t.update({UP: t[UP].reshape(32, 128)})),
        r"\[32, 128\] instead of \[64, 64\]",
    ),
    "shape flat": (entry(shape=[4096]), r"\[4096\] instead of \[64, 64\]"),
    "shape negative": (entry(shape=[-64, -64]), r"match its shape \[-64, -64\]"),
    "shape fractional": (entry(shape=[64.0, 64.0]), "got 64.0 where a whole number"),
    "shape huge": (entry(shape=[2**40, 2**40]), "expected 4,835,703,278,458,516,698,824,704 bytes"),
    "shape too small": (entry(shape=[63, 64]), "expected 16,128 bytes"),
    "shape of words": (entry(shape=["a", "b"]), "got 'a' where a whole number"),
    "shape null": (entry(shape=None), "got object of type 'NoneType'"),
    "offsets overlap": (
        entry(data_offsets=lambda o: [o[0] - 4, o[1] - 4]),
        "bytes from [0-9,]+ on, got",
    ),
    "offsets with a gap": (
        entry(data_offsets=lambda o: [o[0] + 4, o[1] + 4]),
        "bytes from [0-9,]+ on, got",
    ),
    "offsets past the end": (
        entry(data_offsets=lambda o: [o[0] + 2**40, o[1] + 2**40]),
        "bytes from [0-9,]+ on, got",
    ),
    "offsets backwards": (entry(data_offsets=lambda o: o[::-1]), "bytes from [0-9,]+ on, got"),
    "offsets negative": (entry(data_offsets=lambda o: [-o[1], -o[0]]), "bytes from 0 on, got -"),
    "offsets fractional": (
        entry(data_offsets=lambda o: [float(n) for n in o]),
        r"got \d+.0 where a whole number",
    ),
    "offsets of words": (entry(data_offsets=["a", "b"]), "got '<' not supported"),
    "offsets infinite": (entry(data_offsets=[0, float("inf")]), "got inf where a whole number"),
    "three offsets": (entry(data_offsets=lambda o: [*o, o[1]]), "got too many values"),
    "no offsets": (entry(data_offsets=[]), "got list index"),
    "dtype of integers": (entry(dtype="U32"), "wrong dtype .* U32"),
    "dtype unknown": (entry(dtype="F7"), "dtype 'F7'; expected one of F64, F32"),
    "dtype of other width": (entry(dtype="F16"), "expected 8,192 bytes from"),
    "dtype a number": (entry(dtype=32), "dtype 32; expected one of F64, F32"),
    "dtype a list": (entry(dtype=["F32"]), "got unhashable"),
}


VALUES: dict[str, tuple[Damage, str]] = {
    "NaN": (element(np.nan), f"{UP[:-7]} holds NaN"),
    "infinity": (element(np.inf), f"{UP[:-7]} holds NaN or infinite"),
    "minus infinity": (element(-np.inf), f"{UP[:-7]} holds NaN or infinite"),
    "too large for bfloat16": (
        element(3.4e38),
        "up_proj holds weights too large for its weight in .*bfloat16",
    ),
    "NaN in a norm": (tensors(lambda t: t["norm.weight"].fill(np.nan)), "norm holds NaN"),
    "NaN in a row no text uses": (
        tensors(lambda t: t["embed_tokens.weight"][-1].fill(np.nan)),
        "embed_tokens holds NaN",
    ),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_damaged_weights_are_refused(case, sound, tmp_path):
    damage, says = SAFETENSORS[case]
    damage(shutil.copytree(sound, tmp_path / "source"))
    refused(tmp_path / "source", tmp_path / "out", says)


@pytest.mark.parametrize("case", VALUES)
def test_weights_that_are_no_number_or_too_large_are_refused(case, sound, tmp_path):
    damage, says = VALUES[case]
    damage(shutil.copytree(sound, tmp_path / "source"))
    refused(tmp_path / "source", tmp_path / "out", says, room=10_000_000)  # the sample is embedded


# config.json


def config(**changes: Any) -> Damage:
    return json_file("config.json", lambda raw: raw | changes)


def without(key: str) -> Damage:
    return json_file("config.json", lambda raw: {k: v for k, v in raw.items() if k != key})


def json_file(name: str, change: Callable[[Any], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        changed = change(json.loads(path.read_text()) if path.exists() else None)
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))

    return damage


def a_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


CONFIGS: dict[str, tuple[Damage, str]] = {
    "absent": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a folder": (a_folder("config.json"), "config.json"),
    "empty": (json_file("config.json", lambda raw: ""), "is not JSON: Expecting value"),
    "cut short": (
        json_file("config.json", lambda raw: '{"model_type": "ge'),
        "is not JSON: Unterminated",
    ),
    "a list": (json_file("config.json", lambda raw: []), "expected a JSON object"),
    "100,000 deep": (
        json_file("config.json", lambda raw: "[" * 100_000),
        "is not JSON: maximum recursion",
    ),
    "another architecture": (config(model_type="llama"), "expected .*gemma3_text.*, got .llama"),
    "no architecture": (without("model_type"), "expected .*gemma3_text.* got None"),
    "causal": (config(use_bidirectional_attention=False), "causal"),
    "soft caps": (
        config(attn_logit_softcapping=50.0),
        "expected attn_logit_softcapping None, got 50.0",
    ),
    "no hidden_size": (without("hidden_size"), "hidden_size"),
    "no rope_theta": (config(rope_theta=None), "expected for rope_theta a number above 0, got None"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers an integer from 1 to 1,000, got 0"),
    "a layer more": (config(num_hidden_layers=2, layer_types=None), "missing 13: layers.1"),
    "10^9 layers": (
        config(num_hidden_layers=10**9, layer_types=None),
        "num_hidden_layers an integer from 1 to 1,000, got 1000000000",
    ),
    "vocabulary of 10^9": (config(vocab_size=10**9), r"instead of \[1000000000, 64\]"),
    "vocabulary of 10^4000": (
        json_file("config.json", lambda raw: json.dumps(raw).replace(": 512", ": 1" + 4000 * "0")),
        "expected for vocab_size an integer from 1 .* got 10000",
    ),
    "hidden size 10^12": (config(hidden_size=10**12), "expected for hidden_size .* got 1000000000000"),
    "head size 0": (config(head_dim=0), "expected for head_dim .* multiple of 2, got 0"),
    "no heads": (config(num_attention_heads=0), "expected for num_attention_heads .* got 0"),
    "negative size": (config(hidden_size=-64), "expected for hidden_size .* got -64"),
    "infinite size": (config(hidden_size=float("inf")), "expected for hidden_size .* got inf"),
    "size a word": (config(hidden_size="big"), "expected for hidden_size .* got 'big'"),
    "size a list": (config(hidden_size=[64]), "expected for hidden_size .* got .64"),
    "other vocabulary": (config(vocab_size=99), r"\[512, 64\] instead of \[99, 64\]"),
    "window zero": (config(sliding_window=0), "expected for sliding_window an integer from 2 .* got 0"),
    "pattern zero": (
        config(sliding_window_pattern=0, layer_types=None),
        "expected for sliding_window_pattern .* got 0",
    ),
    "strange layers": (config(layer_types=["mamba"]), r"expected 1 layer_types .* got \['mamba'\]"),
    "layers a number": (config(layer_types=1), "expected 1 layer_types .* got 1"),
    "scale zero": (
        config(query_pre_attn_scalar=0),
        "expected for query_pre_attn_scalar a number above 0, got 0",
    ),
    "scale negative": (
        config(query_pre_attn_scalar=-64),
        "expected for query_pre_attn_scalar a number above 0, got -64",
    ),
    "eps NaN": (config(rms_norm_eps=float("nan")), "expected for rms_norm_eps .* got nan"),
    "rope base zero": (config(rope_theta=0), "expected for rope_theta a number above 0, got 0"),
    "rope base NaN": (config(rope_theta=float("nan")), "expected for rope_theta .* got nan"),
    "rope a list": (
        config(rope_parameters=["full_attention", "sliding_attention"]),
        "expected for rope_parameters an object, got .'full_attention",
    ),
    "rope of words": (
        config(rope_parameters={"full_attention": "a", "sliding_attention": "b"}),
        "expected for full_attention an object, got 'a'",
    ),
    "heads that do not share": (
        config(num_attention_heads=3, num_key_value_heads=2),
        "multiple of 2, got 3",
    ),
    "odd head size": (config(head_dim=63), "expected for head_dim .* multiple of 2, got 63"),
    "quantization a number": (config(quantization=4), "expected for quantization an object, got 4"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_damaged_configs_are_refused(case, sound, tmp_path):
    damage, says = CONFIGS[case]
    damage(shutil.copytree(sound, tmp_path / "source"))
    refused(tmp_path / "source", tmp_path / "out", says)


# shards, packed weights, heads, tokenizers


def shards(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The folder in two shards; its index's weight_map changed in place, or the index replaced."""

    def damage(folder: Path) -> None:
        whole = folder.rename(folder.with_name("whole"))
        checkpoints.shard(whole, folder, 2)
        shutil.rmtree(whole)
        path = folder / "model.safetensors.index.json"
        raw = json.loads(path.read_text())
        changed = change(raw["weight_map"])
        path.write_text(json.dumps(raw if changed is None else changed))

    return damage


def packed(change: Callable[[dict[str, mx.array], dict[str, Any]], object]) -> Damage:
    """The folder in 4 bits; its tensors and its config.json's quantization changed in place."""

    def damage(folder: Path) -> None:
        whole = folder.rename(folder.with_name("whole"))
        checkpoints.as_mlx_community(whole, folder, bits=4)
        shutil.rmtree(whole)
        weights, path = folder / "model.safetensors", folder / "config.json"
        found, raw = mx.load(str(weights)), json.loads(path.read_text())
        mx.eval(found)
        change(found, raw["quantization"])
        weights.unlink()
        mx.save_safetensors(str(weights), found)
        path.write_text(json.dumps(raw))

    return damage


def removed(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def pooled(**settings: Any) -> Damage:
    return json_file("1_Pooling/config.json", lambda c: {"include_prompt": True} | settings)


def dense(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    return tensors(change, "2_Dense/model.safetensors")


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SCALES = "model.layers.0.mlp.up_proj.scales"
FOLDERS: dict[str, tuple[Damage, str]] = {
    "index no JSON": (
        lambda f: (shards(lambda m: None)(f), written("model.safetensors.index.json", b"{")(f)),
        "index.json is not JSON",
    ),
    "index without a map": (
        shards(lambda m: {"metadata": {}}),
        "expected an object with a weight_map, got {'metadata",
    ),
    "index a list": (shards(lambda m: [1]), "expected an object with a weight_map, got .1"),
    "index empty": (shards(lambda m: {"weight_map": {}}), "expected an object with a weight_map"),
    "shard a number": (
        shards(lambda m: m.update({UP: 1})),
        "expected for .*up_proj.* a file beside it, got 1",
    ),
    "shard in another folder": (
        shards(lambda m: m.update({UP: "../x.safetensors"})),
        "a file beside it, got '../x",
    ),
    "shard that is missing": (
        shards(lambda m: m.update({UP: "model-3.safetensors"})),
        "lacks model-3.safetensors",
    ),
    "tensor in the wrong shard": (
        shards(lambda m: m.update({UP: ONE if m[UP] == TWO else TWO})),
        f"expected '{UP}' in .* found it in",
    ),
    "shard cut short": (
        lambda f: (shards(lambda m: None)(f), written(TWO, (f / TWO).read_bytes()[:-9])(f)),
        f"{TWO} was cut short",
    ),
    "scales missing": (
        packed(lambda t, q: t.pop(SCALES)),
        r"up_proj.weight \[64, 8\] instead of \[64, 64\]",
    ),
    "scales of other groups": (
        packed(lambda t, q: q.update(group_size=32)),
        "wrong shape .* instead of",
    ),
    "bits of other width": (packed(lambda t, q: q.update(bits=8)), "wrong shape .* instead of"),
    "bits that nobody has": (
        packed(lambda t, q: q.update(bits=7)),
        "bits of .* got 64, 7 and 'affine'",
    ),
    "group of zero": (packed(lambda t, q: q.update(group_size=0)), "group_size of .* got 0, 4"),
    "no group size": (packed(lambda t, q: q.pop("group_size")), "group_size of .* got None, 4"),
    "a mode unheard of": (
        packed(lambda t, q: q.update(mode="int3")),
        "mode of .* got 64, 4 and 'int3'",
    ),
    "packed without a table": (packed(lambda t, q: q.clear()), "is quantized, but config.json has no"),
    "packed weights as floats": (
        packed(
            lambda t, q: t.update(
                {k: v.astype(mx.float32) for k, v in t.items() if v.dtype == mx.uint32}
            )
        ),
        "wrong dtype .* F32",
    ),
    "biases missing": (
        packed(lambda t, q: t.pop(SCALES.replace("scales", "biases"))),
        "missing 1: .*biases",
    ),
    "no head at all": (removed("modules.json"), "has no dense head"),
    "modules no JSON": (written("modules.json", b"["), "modules.json is not JSON"),
    "modules an object": (written("modules.json", b"{}"), "modules.json: expected a list of modules"),
    "modules of numbers": (written("modules.json", b"[1]"), "modules.json: expected a list of modules"),
    "modules without path": (
        json_file("modules.json", lambda m: [{"type": x["type"]} for x in m]),
        "with type and path",
    ),
    "dense folder without weights": (
        removed("2_Dense/model.safetensors"),
        "lacks 2_Dense/model.safetensors",
    ),
    "dense folder without config": (removed("2_Dense/config.json"), "lacks 2_Dense/config.json"),
    "dense config a list": (
        written("2_Dense/config.json", b"[]"),
        "2_Dense/config.json: expected a JSON object",
    ),
    "dense with a bias": (
        json_file("2_Dense/config.json", lambda c: c | {"bias": True}),
        "missing 1: dense.0.bias",
    ),
    "dense with prelu": (
        json_file("2_Dense/config.json", lambda c: c | {"activation_function": "torch.nn.PReLU"}),
        "a Dense with activation 'torch.nn.PReLU' is not computed here",
    ),
    "dense of other inputs": (
        dense(lambda t: t.update({"linear.weight": t["linear.weight"][:, :32].copy()})),
        r"dense.0.weight \[64, 32\] instead of \[64, 64\]",
    ),
    "dense by another name": (
        dense(lambda t: t.update({"fc.weight": t.pop("linear.weight")})),
        "left over .*fc.weight",
    ),
    "dense cut short": (
        lambda f: written(
            "3_Dense/model.safetensors", (f / "3_Dense/model.safetensors").read_bytes()[:-1]
        )(f),
        "3_Dense/model.safetensors was cut short",
    ),
    "pooling of the first token": (
        pooled(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
        r"1_Pooling/config.json: expected the mean over all tokens.* got \['pooling_mode_cls_token'\]",
    ),
    "pooling of two kinds": (
        pooled(pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True),
        "expected the mean over all tokens.* got .*max_tokens'.*sentence-transformers",
    ),
    "pooling of the last token, as newer files name it": (
        pooled(pooling_mode="lasttoken"),
        "expected the mean over all tokens.* got 'lasttoken'",
    ),
    "pooling without the prompt": (
        pooled(pooling_mode_mean_tokens=True, include_prompt=False),
        "the prompt's included, got .* include_prompt False",
    ),
    "pooling config a list": (
        written("1_Pooling/config.json", b"[]"),
        "1_Pooling/config.json: expected a JSON object",
    ),
    "prompts a list": (
        written("config_sentence_transformers.json", b"[]"),
        r"config_sentence_transformers.json: expected a JSON object, got \[\]",
    ),
    "prompts of numbers": (
        written("config_sentence_transformers.json", b'{"prompts": {"query": 5}}'),
        "expected prompts to be an object of texts by name, got",
    ),
    "length a word": (
        written("sentence_bert_config.json", b'{"max_seq_length": "long"}'),
        "expected for max_seq_length a whole number from 3 to .* got 'long'",
    ),
    "only pytorch_model.bin": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "lacks model.safetensors; only pytorch_model.bin",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_do_not_fit_together_are_refused(case, sound, tmp_path):
    damage, says = FOLDERS[case]
    damage(shutil.copytree(sound, tmp_path / "source"))
    refused(tmp_path / "source", tmp_path / "out", says)


def tokens(change: Callable[[dict[str, Any]], object]) -> Damage:
    def changed(raw: dict[str, Any]) -> dict[str, Any]:
        change(raw)
        return raw

    return json_file("tokenizer.json", changed)


def alone(model: bytes) -> Damage:
    """A tokenizer.model without the tokenizer.json that would be read in its place."""

    def changed(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(model)

    return changed


TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "missing": (removed("tokenizer.json"), "neither tokenizer.model nor tokenizer.json"),
    "empty": (written("tokenizer.json", b""), "tokenizer.json is empty"),
    "cut short": (written("tokenizer.json", b'{"version": "1.0", "mod'), "not a tokenizer"),
    "a list": (written("tokenizer.json", b"[]"), "not a tokenizer"),
    "100,000 deep": (written("tokenizer.json", b"[" * 100_000), "not a tokenizer"),
    "without a model": (tokens(lambda t: t.pop("model")), "not a tokenizer"),
    "vocabulary a list": (tokens(lambda t: t["model"].update(vocab=[1, 2])), "not a tokenizer"),
    "merges of unknown pieces": (
        tokens(lambda t: t["model"].update(merges=[["q", "zz"]])),
        "not a tokenizer",
    ),
    "ids of words": (tokens(lambda t: t["model"]["vocab"].update(a="b")), "not a tokenizer"),
    "more tokens than rows": (
        tokens(lambda t: t["model"]["vocab"].update(more=512)),
        "the tokenizer has 513 tokens, .* 512 rows",
    ),
    "sentencepiece empty": (written("tokenizer.model", b""), "tokenizer.model is empty"),
    "sentencepiece noise": (
        alone(bytes(range(256)) * 9),
        "tokenizer.model is not a sentencepiece model",
    ),
    "sentencepiece of a huge length": (
        alone(b"\n\xff\xff\xff\xff\x07"),
        "tokenizer.model is not a sentencepiece model",
    ),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_damaged_tokenizers_are_refused(case, sound, tmp_path, capfd):
    damage, says = TOKENIZERS[case]
    damage(shutil.copytree(sound, tmp_path / "source"))
    refused(tmp_path / "source", tmp_path / "out", says, room=10_000_000)
    assert capfd.readouterr().err.count("\n") == 0


# GGUF


def u32(n: int) -> bytes:
    return struct.pack("<II", 4, n)


def f32(x: float) -> bytes:
    return struct.pack("<If", 6, x)


def string(text: str | bytes) -> bytes:
    content = text if isinstance(text, bytes) else text.encode()
    return len(content).to_bytes(8, "little") + content


def array(kind: int, count: int, content: bytes) -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + content


@dataclass
class Gguf:
    """What a GGUF file says; anything in it may be untrue.

    Attributes:
        metadata: key, and the value with its type as it stands in the file.
        infos: name, sizes (columns first), ggml type and offset of each tensor.
        counts: of tensors and of metadata, where they are not the true ones.
    """

    metadata: list[tuple[str, bytes]]
    infos: list[tuple[str, tuple[int, ...], int, int]]
    data: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    counts: list[int | None] = field(default_factory=lambda: [None, None])
    cut: int | None = None

    def set(self, key: str, value: bytes) -> None:
        """A metadata entry of the architecture replaced or added."""
        key = key if "." in key and not key.startswith("attention") else f"gemma-embedding.{key}"
        self.metadata = [*((k, v) for k, v in self.metadata if k != key), (key, value)]

    def drop(self, key: str) -> None:
        self.metadata = [(k, v) for k, v in self.metadata if not k.endswith(key)]

    def info(self, tensor: str, **changes: Any) -> None:
        fields = ("name", "sizes", "kind", "offset")
        self.infos = [
            tuple((dict(zip(fields, info, strict=True)) | changes).values())
            if info[0] == tensor
            else info
            for info in self.infos
        ]

    def content(self) -> bytes:
        tensors, entries = self.counts
        counts = (len(self.infos) if tensors is None else tensors, entries)
        entries = len(self.metadata) if entries is None else entries
        out = self.magic + struct.pack("<IQQ", self.version, counts[0], entries)
        out += b"".join(string(key) + value for key, value in self.metadata)
        for name, sizes, kind, offset in self.infos:
            out += string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            out += struct.pack("<IQ", kind, offset)
        out += bytes(-len(out) % 32) + self.data
        return out[: self.cut]


def as_gguf(folder: Path) -> Gguf:
    cfg = json.loads((folder / "config.json").read_text())
    numbers = {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
    }
    metadata = [("general.architecture", struct.pack("<I", 8) + string("gemma-embedding"))]
    metadata += [(f"gemma-embedding.{key}", u32(cfg[ours])) for key, ours in numbers.items()]
    metadata += [("gemma-embedding.attention.layer_norm_rms_epsilon", f32(1e-6))]
    metadata += [("gemma-embedding.rope.freq_base", f32(1e6))]
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "dense.0": "dense_2"}
    names |= {"dense.1": "dense_3"} | {f"layers.0.{a}": f"blk.0.{b}" for a, b in NAMES.items()}
    infos, data = [], b""
    for name, x in checkpoints.all_tensors(folder).items():
        infos.append((f"{names[name.removesuffix('.weight')]}.weight", x.shape[::-1], 0, len(data)))
        data += (x + (x.ndim == 1)).astype("<f4").tobytes()
    return Gguf(metadata, infos, data)


HUGE = 2**60
TABLE, NORM, GATE = "token_embd.weight", "output_norm.weight", "blk.0.ffn_gate.weight"
GGUFS: dict[str, tuple[Callable[[Gguf], object], str]] = {
    "empty": (lambda g: vars(g).update(cut=0), "4 bytes expected, got 0"),
    "magic only": (lambda g: vars(g).update(cut=4), "4 bytes expected, got 0"),
    "counts only": (lambda g: vars(g).update(cut=24), "expected at most .* that fit into it"),
    "cut in the metadata": (lambda g: vars(g).update(cut=300), "damaged or truncated"),
    "cut in the tensors' table": (lambda g: vars(g).update(cut=900), "damaged or truncated"),
    "cut in the data": (lambda g: vars(g).update(cut=-1), "between .* and .* got it at"),
    "another magic": (
        lambda g: vars(g).update(magic=b"ggml"),
        "expected a GGUF file or a checkpoint's folder, got b'ggml' at its start",
    ),
    "version 1": (lambda g: vars(g).update(version=1), "version 2 or 3, got version 1"),
    "big-endian": (
        lambda g: vars(g).update(version=3 << 24),
        "version 2 or 3, got big-endian: turn it with `gguf-convert-endian",
    ),
    "2^60 tensors": (
        lambda g: g.counts.__setitem__(0, HUGE),
        "expected at most 65,536 .* got 1,152,921",
    ),
    "2^60 entries": (
        lambda g: g.counts.__setitem__(1, HUGE),
        "expected at most 65,536 .* got 1,152,921",
    ),
    "a tensor more than there are": (
        lambda g: g.counts.__setitem__(0, len(g.infos) + 1),
        "damaged or truncated",
    ),
    "an entry more than there are": (
        lambda g: g.counts.__setitem__(1, len(g.metadata) + 1),
        "damaged or truncated",
    ),
    "key of 2^60 bytes": (
        lambda g: (
            g.metadata.insert(0, ("", b""))
            or g.metadata.__setitem__(0, ("", HUGE.to_bytes(8, "little")))
        ),
        "damaged or truncated",
    ),
    "string of 2^60 bytes": (
        lambda g: g.set("general.name", struct.pack("<IQ", 8, HUGE)),
        "1,152,921,504,606,846,976 bytes expected",
    ),
    "string not UTF-8": (
        lambda g: g.set("general.name", struct.pack("<I", 8) + string(b"\xff\xfe")),
        "'utf-8' codec",
    ),
    "array of 2^60 numbers": (
        lambda g: g.set("x.y", array(4, HUGE, b"")),
        "expected at most 1,048,576 .* got 1,152,921",
    ),
    "array of 2^60 strings": (
        lambda g: g.set("x.y", array(8, HUGE, b"")),
        "expected at most 1,048,576 .* got 1,152,921",
    ),
    "array of arrays": (
        lambda g: g.set("x.y", array(9, 1, array(4, 0, b"")[4:])),
        "expected an array of numbers or strings, got one of type 9",
    ),
    "arrays 10,000 deep": (
        lambda g: g.set("x.y", array(9, 1, struct.pack("<IQ", 9, 1) * 10_000)),
        "got one of type 9",
    ),
    "value of type 99": (
        lambda g: g.set("x.y", struct.pack("<I", 99)),
        "expected a value of a type from 0 to 12, got type 99",
    ),
    "key twice": (lambda g: g.metadata.append(g.metadata[1]), "context_length' comes twice"),
    "alignment 0": (lambda g: g.set("general.alignment", u32(0)), "expected an alignment .* got 0"),
    "alignment a fraction": (
        lambda g: g.set("general.alignment", f32(32)),
        "expected an alignment .* got 32.0",
    ),
    "alignment 2^31": (
        lambda g: g.set("general.alignment", u32(2**31)),
        "on a multiple of 2,147,483,648, got it at",
    ),
    "another architecture": (
        lambda g: g.set("general.architecture", struct.pack("<I", 8) + string("llama")),
        "expected architecture gemma-embedding, or gemma3 with a dense head, got 'llama'",
    ),
    "no architecture": (
        lambda g: g.drop("architecture"),
        "expected architecture gemma-embedding, or gemma3 with a dense head, got None",
    ),
    "no embedding length": (
        lambda g: g.drop("embedding_length"),
        "lacks 'gemma-embedding.embedding_length'",
    ),
    "no norm epsilon": (
        lambda g: g.drop("epsilon"),
        "lacks 'gemma-embedding.attention.layer_norm_rms_epsilon'",
    ),
    "epsilon a word": (
        lambda g: g.set("attention.layer_norm_rms_epsilon", struct.pack("<I", 8) + string("x")),
        "rms_norm_eps a number above 0, got 'x'",
    ),
    "2^32 layers": (
        lambda g: g.set("block_count", u32(2**32 - 1)),
        "an integer from 1 to 1,000, got 4294967295",
    ),
    "layers a word": (
        lambda g: g.set("block_count", struct.pack("<I", 8) + string("six")),
        "an integer from 1 to 1,000, got 'six'",
    ),
    "a layer more": (lambda g: g.set("block_count", u32(2)), "missing layers.1"),
    "other hidden size": (
        lambda g: g.set("embedding_length", u32(128)),
        r"\[512, 64\] instead of \[512, 128\]",
    ),
    "no heads": (lambda g: g.set("attention.head_count", u32(0)), "num_attention_heads .* got 0"),
    "heads by layer": (
        lambda g: g.set("attention.head_count", array(4, 1, bytes(4))),
        "num_attention_heads .* got .0",
    ),
    "tensor missing": (lambda g: g.infos.pop(2), "missing layers.0"),
    "table missing": (lambda g: g.infos.pop(0), "lacks 'embed_tokens'"),
    "tensor extra": (
        lambda g: (
            g.infos.append(("rope_freqs.weight", (0,), 0, 0))
            or g.info("rope_freqs.weight", sizes=(8,), offset=len(g.data))
            or vars(g).update(data=g.data + bytes(32))
        ),
        "left over 'rope_freqs.weight'",
    ),
    "tensor twice": (lambda g: g.infos.append(g.infos[-1]), "comes twice"),
    "tensor under two names": (
        lambda g: (
            g.infos.append(("norm", (64,), 0, len(g.data))) or vars(g).update(data=g.data + bytes(256))
        ),
        "each tensor once",
    ),
    "layer a word": (
        lambda g: g.info(GATE, name="blk.x.ffn_gate.weight"),
        "missing layers.0.mlp.gate_proj.* left over 'layers.x",
    ),
    "name of 2^60 bytes": (
        lambda g: vars(g).update(
            infos=[], counts=[1, None], data=HUGE.to_bytes(8, "little") + bytes(99)
        ),
        "damaged or truncated",
    ),
    "no dimensions": (
        lambda g: g.info(NORM, sizes=()),
        "expected 1 to 4 dimensions of 'output_norm.weight', got 0",
    ),
    "nine dimensions": (
        lambda g: g.info(NORM, sizes=(64,) + 8 * (1,)),
        "expected 1 to 4 dimensions .* got 9",
    ),
    "a dimension of zero": (
        lambda g: g.info(NORM, sizes=(0,)),
        r"in rows of a multiple of 1, got \[0\]",
    ),
    "dimensions that overflow 64 bits": (
        lambda g: g.info(TABLE, sizes=(2**40, 2**40)),
        "4,835,703,278,458,516,698,824,704 bytes. between",
    ),
    "dimensions swapped": (
        lambda g: g.info(TABLE, sizes=(512, 64)),
        r"embed_tokens \[64, 512\] instead of",
    ),
    "unsupported type": (
        lambda g: g.info(GATE, kind=12),
        "ffn_gate.weight' is Q4_K; expected one of F32, F16.*llama-quantize",
    ),
    "a type of other width": (
        lambda g: g.info(GATE, kind=1) or g.info("blk.0.ffn_up.weight", offset=0),
        "between .* and .* got it at",
    ),
    "rows that are no blocks": (
        lambda g: g.info(GATE, kind=2, sizes=(33, 2)),
        r"multiple of 32, got \[2, 33\]",
    ),
    "a packed norm": (lambda g: g.info(NORM, kind=8), "norm packed instead of floats"),
    "offset off the grid": (
        lambda g: g.info(NORM, offset=g.infos[-1][3] + 4),
        "on a multiple of 32, got it at",
    ),
    "offset past the end": (lambda g: g.info(NORM, offset=HUGE), "between .* and .* got it at"),
    "offsets overlap": (lambda g: g.info(NORM, offset=g.infos[0][3]), "between .* and .* got it at"),
    "without the head": (
        lambda g: vars(g).update(infos=g.infos[:-2]),
        "lacks the dense head .* --dense-from",
    ),
    "half a head": (lambda g: g.infos.pop(), "lacks the dense head .* --dense-from"),
    "NaN": (
        lambda g: vars(g).update(data=struct.pack("<f", np.nan) + g.data[4:]),
        "holds NaN or infinite weights",
    ),
}


def write_gguf(path: Path, gguf: Gguf) -> Path:
    path.write_bytes(gguf.content())
    return path


def test_the_undamaged_gguf_converts(sound, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", as_gguf(sound))
    assert convert(file, tmp_path / "out", recipe="bf16", tokenizer=sound).fidelity[64].mean > 0.999


@pytest.mark.parametrize("case", GGUFS)
def test_damaged_ggufs_are_refused(case, sound, tmp_path):
    gguf = as_gguf(sound)
    damage, says = GGUFS[case]
    damage(gguf)
    file = write_gguf(tmp_path / "model.gguf", gguf)
    room = 10_000_000 if case == "NaN" else 1_000_000
    refused(file, tmp_path / "out", says, tokenizer=sound, room=room)


PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
PIECES += [chr(i) for i in range(0x4E00, 0x4E00 + 512 - len(PIECES))]
GGUF_TOKENIZERS = {
    "tokens are numbers": ("tokens", array(4, 512, bytes(2048)), "carries no sentencepiece tokenizer"),
    "tokens one string": ("tokens", struct.pack("<I", 8) + string("x"), "carries no sentencepiece"),
    "fewer tokens than scores": ("tokens", array(8, 4, 4 * string("a")), "carries no sentencepiece"),
    "scores are strings": ("scores", array(8, 512, 512 * string("")), "carries no sentencepiece"),
    "scores are not numbers": (
        "scores",
        array(6, 512, struct.pack("<f", np.nan) * 512),
        "carries no sentencepiece",
    ),
    "unheard-of kinds": (
        "token_type",
        array(4, 512, struct.pack("<I", 300) * 512),
        "carries no sentencepiece",
    ),
    "another model": (
        "model",
        struct.pack("<I", 8) + string("gpt2"),
        "carries no sentencepiece .* --tokenizer",
    ),
    "no unknown token": (
        "token_type",
        array(4, 512, struct.pack("<I", 1) * 512),
        "is not a sentencepiece model",
    ),
}


def with_tokenizer(gguf: Gguf) -> Gguf:
    kinds = [3, 3, 3, 2] + 256 * [6] + 252 * [1]
    gguf.set("tokenizer.ggml.model", struct.pack("<I", 8) + string("llama"))
    gguf.set("tokenizer.ggml.tokens", array(8, 512, b"".join(map(string, PIECES))))
    gguf.set(
        "tokenizer.ggml.scores", array(6, 512, struct.pack("<512f", *(-float(i) for i in range(512))))
    )
    gguf.set("tokenizer.ggml.token_type", array(5, 512, struct.pack("<512i", *kinds)))
    return gguf


def test_the_undamaged_gguf_converts_with_its_own_tokenizer(sound, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", with_tokenizer(as_gguf(sound)))
    convert(file, tmp_path / "out", recipe="bf16")
    assert EmbeddingGemma(tmp_path / "out").tokenize(["\u4e01a"]) == [[2, 261, 4 + ord("a"), 1]]


@pytest.mark.parametrize("case", GGUF_TOKENIZERS)
def test_damaged_tokenizers_of_ggufs_are_refused(case, sound, tmp_path, capfd):
    key, value, says = GGUF_TOKENIZERS[case]
    gguf = with_tokenizer(as_gguf(sound))
    gguf.set(f"tokenizer.ggml.{key}", value)
    refused(write_gguf(tmp_path / "model.gguf", gguf), tmp_path / "out", says, room=10_000_000)
    assert capfd.readouterr().err.count("\n") == 0


def test_a_borrowed_head_of_another_network_is_refused(sound, tmp_path):
    gguf = as_gguf(sound)
    gguf.infos = gguf.infos[:-2]
    file = write_gguf(tmp_path / "model.gguf", gguf)
    other = tiny(tmp_path / "other", hidden_size=128)
    says = r"dense.0 \[64, 128\] instead of \[64, 64\]"
    refused(file, tmp_path / "out", says, tokenizer=sound, dense_from=other)
    without = tiny(tmp_path / "without", dense=())
    refused(file, tmp_path / "out", "lacks the dense head", tokenizer=sound, dense_from=without)
