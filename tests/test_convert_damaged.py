"""Malformed sources: each is refused in one line that says what was expected and what came instead.

Nothing is written, nothing hangs, and no count or length in a file makes the converter allocate more
than the file itself could fill.
"""

import json
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.convert import convert
from safetensors.numpy import load_file, save_file

from mlx_embeddinggemma import EmbeddingGemmaError

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
    "tensor extra": (tensors(lambda t: t.update({"lm_head.weight": t[UP]})), "left over 1: lm_head"),
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
    "shape fractional": (entry(shape=[64.0, 64.0]), "got 'float' object"),
    "shape huge": (entry(shape=[2**40, 2**40]), "expected 4,835,703,278,458,516,698,824,704 bytes"),
    "shape too small": (entry(shape=[63, 64]), "expected 16,128 bytes"),
    "shape of words": (entry(shape=["a", "b"]), "got 'str' object"),
    "shape null": (entry(shape=None), "got 'NoneType' object"),
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
    "offsets fractional": (entry(data_offsets=lambda o: [float(n) for n in o]), "got 'float' object"),
    "offsets of words": (entry(data_offsets=["a", "b"]), "got '<' not supported"),
    "offsets infinite": (entry(data_offsets=[0, float("inf")]), "got 'float' object"),
    "three offsets": (entry(data_offsets=lambda o: [*o, o[1]]), "got too many values"),
    "no offsets": (entry(data_offsets=[]), "got list index"),
    "dtype of integers": (entry(dtype="U32"), "wrong dtype .* U32"),
    "dtype unknown": (entry(dtype="F7"), "dtype F7; expected one of F32"),
    "dtype of other width": (entry(dtype="F16"), "expected 8,192 bytes from"),
    "dtype a number": (entry(dtype=32), "dtype 32; expected one of F32"),
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
    "no rope_theta": (without("rope_theta"), "rope_theta"),
    "no layers": (config(num_hidden_layers=0), "expected 1 to 1,000 layers, got 0"),
    "a layer more": (config(num_hidden_layers=2, layer_types=None), "missing 13: layers.1"),
    "10^9 layers": (
        config(num_hidden_layers=10**9, layer_types=None),
        "expected 1 to 1,000 layers, got 1,000,000,000",
    ),
    "vocabulary of 10^9": (config(vocab_size=10**9), r"instead of \[1000000000, 64\]"),
    "vocabulary of 10^4000": (
        json_file("config.json", lambda raw: json.dumps(raw).replace(": 512", ": 1" + 4000 * "0")),
        "expected for vocab_size a number from 1 .* got 10000",
    ),
    "hidden size 10^12": (config(hidden_size=10**12), "expected for hidden_size .* got 1000000000000"),
    "head size 0": (config(head_dim=0), "expected for head_dim .* multiple of 2, got 0"),
    "no heads": (config(num_attention_heads=0), "expected for num_attention_heads .* got 0"),
    "negative size": (config(hidden_size=-64), "expected for hidden_size .* got -64"),
    "infinite size": (config(hidden_size=float("inf")), "expected for hidden_size .* got inf"),
    "size a word": (config(hidden_size="big"), "expected for hidden_size .* got 'big'"),
    "size a list": (config(hidden_size=[64]), "expected for hidden_size .* got .64"),
    "other vocabulary": (config(vocab_size=99), r"\[512, 64\] instead of \[99, 64\]"),
    "window zero": (config(sliding_window=0), "expected sliding_window >= 2, got 0"),
    "pattern zero": (
        config(_sliding_window_pattern=0, layer_types=None),
        "expected for sliding_window_pattern .* got 0",
    ),
    "strange layers": (config(layer_types=["mamba"]), "expected 1 layer_types .* got 1: .'mamba'"),
    "layers a number": (config(layer_types=1), "wrong type"),
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
        "wrong type: 'list'",
    ),
    "rope of words": (
        config(rope_parameters={"full_attention": "a", "sliding_attention": "b"}),
        "wrong type: 'str'",
    ),
    "heads that do not share": (
        config(num_attention_heads=3, num_key_value_heads=2),
        "multiple of 2, got 3",
    ),
    "odd head size": (config(head_dim=63), "expected for head_dim .* multiple of 2, got 63"),
    "quantization a number": (config(quantization=4), "wrong type: 'int'"),
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
        f"expected {UP} in .* found it in",
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
    "dense folder without config": (removed("2_Dense/config.json"), "2_Dense has no config.json"),
    "dense config a list": (
        written("2_Dense/config.json", b"[]"),
        "2_Dense/config.json: expected a JSON object",
    ),
    "dense with a bias": (
        json_file("2_Dense/config.json", lambda c: c | {"bias": True}),
        "without bias .* got bias True",
    ),
    "dense with tanh": (
        json_file("2_Dense/config.json", lambda c: c | {"activation_function": "torch.nn.Tanh"}),
        "got .* activation Tanh",
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
    "prompts a list": (
        written("config_sentence_transformers.json", b"[]"),
        "expected an object with prompts by name, got",
    ),
    "prompts of numbers": (
        written("config_sentence_transformers.json", b'{"prompts": {"query": 5}}'),
        "prompts by name, got",
    ),
    "length a word": (
        written("sentence_bert_config.json", b'{"max_seq_length": "long"}'),
        "expected an object with max_seq_length, got",
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


TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "missing": (removed("tokenizer.json"), "neither tokenizer.model nor tokenizer.json"),
    "empty": (written("tokenizer.json", b""), "not a tokenizer"),
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
    "fewer tokens than rows": (
        tokens(lambda t: t["model"]["vocab"].popitem()),
        "the tokenizer has 511 tokens, .* 512 rows",
    ),
    "sentencepiece empty": (
        written("tokenizer.model", b""),
        "tokenizer.model is not a sentencepiece model",
    ),
    "sentencepiece noise": (
        written("tokenizer.model", bytes(range(256)) * 9),
        "tokenizer.model is not a sentencepiece model",
    ),
    "sentencepiece of a huge length": (
        written("tokenizer.model", b"\n\xff\xff\xff\xff\x07"),
        "tokenizer.model is not a sentencepiece model",
    ),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_damaged_tokenizers_are_refused(case, sound, tmp_path, capfd):
    damage, says = TOKENIZERS[case]
    damage(shutil.copytree(sound, tmp_path / "source"))
    refused(tmp_path / "source", tmp_path / "out", says, room=10_000_000)
    assert capfd.readouterr().err.count("\n") == 0
