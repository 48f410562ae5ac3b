"""The converter: what it writes is what it says, the same each time, whole or absent."""

import hashlib
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.convert import RECIPES, conversion, convert
from mlx_embeddinggemma.convert.formats import grid, on_grid, q4_0, q8_0
from mlx_embeddinggemma.convert.recipes import find_recipe
from mlx_embeddinggemma.convert.sentencepiece_model import from_json
from safetensors.numpy import load_file, save_file
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError
from mlx_embeddinggemma.layout import quantization_of
from mlx_embeddinggemma.tokenizer import JsonTokenizer, SentencePieceTokenizer

TEXTS = ["Mars is the red planet.", "Простой текст", "短い文", ""]


@pytest.fixture(scope="module", autouse=True)
def short_sample(tmp_path_factory):
    """Twelve texts are enough to prove that fidelity is measured, forty to calibrate on."""
    patch = pytest.MonkeyPatch()
    sample = [f"sample text number {i} of twelve" for i in range(12)]
    patch.setattr("mlx_embeddinggemma.convert.conversion.SAMPLE", sample)
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(f"text {i} of {i * i}" for i in range(40)), encoding="utf-8")
    patch.setattr("mlx_embeddinggemma.convert.conversion.TEXTS", texts)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def four_bit(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "four-bit"
    convert(tiny, folder, recipe="4bit")
    return folder


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_gives_a_folder_that_loads_with_the_fidelity_it_claims(recipe, tiny, tmp_path):
    report = convert(tiny, tmp_path / "out", recipe=recipe)
    source, converted = EmbeddingGemma(tiny), EmbeddingGemma(tmp_path / "out")
    a, b = (model.encode(conversion.SAMPLE) for model in (source, converted))
    cosine = (a * b).sum(axis=1).mean()
    claimed = report.fidelity[768].mean
    assert claimed > {"fp32": 0.999999, "bf16": 0.9999}.get(recipe, 0.8)
    assert cosine == pytest.approx(claimed, abs=2e-6)


def test_fp32_keeps_every_weight(tiny, tmp_path):
    convert(tiny, tmp_path / "out", recipe="fp32")
    source = load_file(tiny / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in source.items():
        np.testing.assert_array_equal(written[f"model.{name.removeprefix('model.')}"], value)
    head = load_file(tiny / "2_Dense" / "model.safetensors")["linear.weight"]
    np.testing.assert_array_equal(written["dense.0.weight"], head)


@pytest.mark.parametrize("recipe", RECIPES)
def test_converting_twice_gives_the_same_bytes(recipe, tiny, tmp_path):
    for run in ("one", "other"):
        convert(tiny, tmp_path / run / "out", recipe=recipe)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_the_record_names_sha256_of_the_inputs_and_no_path_of_this_machine(tiny, four_bit):
    record = json.loads((four_bit / "conversion.json").read_text())
    digest = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    assert record["inputs"]["model.safetensors"] == digest
    assert digest in (four_bit / "README.md").read_text()
    for name in ("conversion.json", "README.md", "config.json"):
        assert str(tiny.parent) not in (four_bit / name).read_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_mlx_embeddings_loads_the_same_weights(recipe, tmp_path):
    utils = pytest.importorskip("mlx_embeddings.utils", reason="needs mlx-embeddings")
    from mlx.utils import tree_flatten

    # mlx-embeddings knows only heads that widen by four
    source = checkpoints.write_tiny(tmp_path / "source", dense=(768, 192))
    convert(source, tmp_path / "out", recipe=recipe)
    model = utils.load_model(tmp_path / "out", path_to_repo="")
    theirs = dict(tree_flatten(model.parameters()))
    ours = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert theirs[name].dtype == value.dtype, name
        assert mx.array_equal(theirs[name], value), name
    table = json.loads((tmp_path / "out" / "config.json").read_text()).get("quantization", {})
    for name, module in model.named_modules():
        if "scales" in module:
            settings = {key: table[key] for key in ("bits", "group_size", "mode")}
            settings |= table.get(name, {})
            assert {key: getattr(module, key) for key in settings} == settings, name


def test_a_packed_source_is_carried_over_bit_for_bit_and_expands_to_bf16(four_bit, tmp_path):
    convert(four_bit, tmp_path / "again", recipe="4bit")
    a, b = (mx.load(str(f / "model.safetensors")) for f in (four_bit, tmp_path / "again"))
    assert all(mx.array_equal(a[name], b[name]) for name in a | b)
    report = convert(four_bit, tmp_path / "bf16", recipe="bf16")
    assert report.fidelity[768].mean > 0.9999
    name = "model.layers.0.mlp.up_proj"
    expanded = mx.dequantize(*(a[f"{name}.{n}"] for n in ("weight", "scales", "biases")), 64, 4)
    written = mx.load(str(tmp_path / "bf16" / "model.safetensors"))[f"{name}.weight"]
    assert mx.allclose(expanded, written, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_mlx_community_folder_expands_to_the_very_floats_it_stands_for(dtype, tmp_path):
    whole = checkpoints.write_tiny(tmp_path / "whole", num_hidden_layers=2, dense=(128, 64))
    source = checkpoints.as_mlx_community(whole, tmp_path / "source", bits=4)
    packed = mx.load(str(source / "model.safetensors"))
    mx.eval(packed)
    half = {k: v.astype(mx.bfloat16) if v.dtype == mx.float32 else v for k, v in packed.items()}
    mx.save_safetensors(str(source / "model.safetensors"), half)  # as mlx-community's: 16-bit scales
    report = convert(source, tmp_path / "out", recipe="fp32" if dtype == "float32" else "bf16")
    assert report.fidelity[64].mean > 0.9999
    written = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert set(written) == {k for k in half if k.endswith(".weight")}
    assert "quantization" not in json.loads((tmp_path / "out" / "config.json").read_text())
    for name, value in written.items():
        path = name.removesuffix(".weight")
        expected = half[name].astype(mx.float32)
        if f"{path}.scales" in half:
            bits = np.array(half[name])[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
            q = bits.reshape(value.shape[0], -1, 64).astype(np.float32)
            scales, biases = (
                np.array(half[f"{path}.{n}"].astype(mx.float32))[..., None]
                for n in ("scales", "biases")
            )
            expected = mx.array((scales * q + biases).reshape(value.shape))  # exact but for the sum
        assert value.dtype == getattr(mx, dtype)
        assert mx.array_equal(value, expected.astype(value.dtype)), name


def test_a_sharded_source_gives_the_same_bytes(tmp_path):
    whole = checkpoints.write_tiny(tmp_path / "whole", num_hidden_layers=2)
    source = checkpoints.shard(whole, tmp_path / "shards")
    for folder, out in ((whole, "a"), (source, "b")):
        convert(folder, tmp_path / out, recipe="8bit")
    a, b = (tmp_path / out / "model.safetensors" for out in "ab")
    assert a.read_bytes() == b.read_bytes()
    record = json.loads((tmp_path / "b" / "conversion.json").read_text())
    shards = {path.name for path in source.glob("model-*.safetensors")}
    assert len(shards) == 3 and shards <= record["inputs"].keys()


@pytest.mark.parametrize("dense", [(128,), (96, 160, 64)])
def test_heads_of_other_sizes_and_numbers_convert(dense, tmp_path):
    source = checkpoints.write_tiny(tmp_path / "source", num_hidden_layers=1, dense=dense)
    convert(source, tmp_path / "out", recipe="fp32")
    a, b = (EmbeddingGemma(folder).encode(TEXTS) for folder in (source, tmp_path / "out"))
    assert a.shape[1] == dense[-1]
    assert_near(a, b)


def test_inputs_that_do_not_divide_stay_float_and_are_named(tmp_path):
    source = checkpoints.write_tiny(tmp_path / "source", intermediate_size=96)
    report = convert(source, tmp_path / "out", recipe="4bit")
    assert any("layers.0.mlp.down_proj (96 inputs)" in note for note in report.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["model.layers.0.mlp.down_proj"] is False
    assert np.isfinite(EmbeddingGemma(tmp_path / "out").encode(TEXTS)).all()


def test_a_source_without_head_gives_a_folder_without_head(tmp_path):
    source = checkpoints.write_tiny(tmp_path / "source", dense=())
    convert(source, tmp_path / "out", recipe="8bit")
    assert EmbeddingGemma(tmp_path / "out").dimensions[0] == 192


def test_a_halved_window_is_written_whole(tmp_path):
    source = checkpoints.write_tiny(tmp_path / "source", sliding_window=257)
    with pytest.warns(UserWarning, match="sliding_window 257"):
        convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] == 512


# ggml's grids


def blocks(kind: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((64, 96)).astype(np.float32)
    match kind:
        case "constant":
            x[:] = np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
        case "zero":
            x[::2] = 0
        case "tiny":
            x *= np.float32(1e-8)
        case "subnormal":
            x *= np.float32(1e-41)
        case "huge":
            x *= np.float32(5e4)
        case "tie":
            x[:, ::7], x[:, 3::7] = 4, -4
        case "half levels":
            x = np.round(x * 4) / np.float32(8)
        case "+max before -max":
            x[:, 5::32], x[:, 20::32] = 4, -4
        case "-max before +max":
            x[:, 5::32], x[:, 20::32] = -4, 4
        case "ends of float16":
            x *= (np.logspace(-7, 4, 64, dtype=np.float32) / np.abs(x).max(axis=1))[:, None]
        case "one weight a block":
            x[:, np.arange(96) % 32 != 9] = 0
        case "minus zero":
            x[x < 0] = -0.0
        case "full size":
            x = rng.standard_normal((768, 1152)).astype(np.float32) * np.float32(0.03)
    return x


KINDS = ("random", "constant", "zero", "tiny", "subnormal", "huge", "tie", "half levels")
KINDS += ("+max before -max", "-max before +max", "ends of float16", "one weight a block", "minus zero")
KINDS += ("full size",)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:gguf.*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "quantize", "bits"), [("Q4_0", q4_0, 4), ("Q8_0", q8_0, 8)])
def test_grids_equal_the_gguf_package_bit_for_bit(name, quantize, bits, kind):
    x = blocks(kind)
    ggml = gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(gguf.quants.quantize(x, ggml), ggml)
    packed = grid(*quantize(x), bits)
    got = np.array(mx.dequantize(*packed.values(), 32, bits))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_scales_that_overflow_float16_are_refused():
    with pytest.raises(EmbeddingGemmaError, match="float16"):
        q4_0(np.full((1, 32), 1e6, np.float32))


@pytest.mark.parametrize(
    ("quantize", "bits", "plain", "exact"), [(q4_0, 4, "4bit", "q4_0"), (q8_0, 8, "8bit", "q8_0")]
)
def test_a_checkpoint_on_the_grid_is_recognised_and_kept(quantize, bits, plain, exact, tmp_path):
    source = checkpoints.write_tiny(tmp_path / "source")
    for path in (source / "model.safetensors", *source.glob("*_Dense/model.safetensors")):
        tensors = load_file(path)
        for key, x in tensors.items():
            if x.ndim == 2:
                tensors[key] = np.array(mx.dequantize(*grid(*quantize(x), bits).values(), 32, bits))
        save_file(tensors, path)
    (note,) = convert(source, tmp_path / "plain", recipe=plain).notes
    assert f"{exact} grid: recipe {exact} keeps" in note
    report = convert(source, tmp_path / "exact", recipe=exact)
    assert not report.notes
    assert report.fidelity[768].worst == 1
    written = mx.load(str(tmp_path / "exact" / "model.safetensors"))
    for name, x in checkpoints.all_tensors(source).items():
        path = name.removesuffix(".weight")
        path = path if path.startswith("dense.") else f"model.{path}"
        if x.ndim == 2:
            parts = (written[f"{path}.{n}"] for n in ("weight", "scales", "biases"))
            np.testing.assert_array_equal(np.array(mx.dequantize(*parts, 32, bits)), x, err_msg=name)


def test_grids_whose_scales_were_never_rounded_are_recognised_too():
    x = blocks("random")
    d = np.abs(x.reshape(-1, 32)).max(axis=1, keepdims=True) / np.float32(8)
    levels = np.clip(np.round(x.reshape(-1, 32) / d), -8, 7)
    levels[:, 3] = -8  # training for the grid leaves each block's largest weight on its end
    assert on_grid((levels * d).reshape(x.shape)) == "q4_0"


def test_ordinary_weights_lie_on_no_grid():
    assert on_grid(blocks("random")) is None


# recipes


def test_a_toml_recipe_says_bits_by_pattern(tiny, tmp_path):
    (tmp_path / "mine.toml").write_text(
        '[matrices]\n"embed_tokens" = 16\n"*.self_attn.*" = {bits = 6, group_size = 32}\n'
        '"dense.*" = "mxfp8"\n"*" = 5\n'
    )
    convert(tiny, tmp_path / "out", recipe=tmp_path / "mine.toml")
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert table["model.embed_tokens"] is False
    entry = {"group_size": 32, "bits": 6, "mode": "affine"}
    assert quantization_of("layers.3.self_attn.k_proj", table) == entry
    assert quantization_of("layers.3.mlp.up_proj", table)["bits"] == 5
    assert table["dense.1"] == {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    assert np.isfinite(EmbeddingGemma(tmp_path / "out").encode(TEXTS)).all()


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[matrices]", '[matrices]\n"*" = 7', '[matrices]\n"*" = "q5_1"', "other = 1",
     '[matrices]\n"*" = {bits = 4, group_size = 48}', '[matrices]\n"*" = true',
     'dtype = "float16"\n[matrices]\n"*" = 4'],
)  # fmt: skip
def test_a_wrong_toml_recipe_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(EmbeddingGemmaError) as error:
        find_recipe(tmp_path / "mine.toml")
    assert "\n" not in str(error.value)


# refusals


def test_min_cosine_fails_and_leaves_nothing(tiny, tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="mean cosine"):
        convert(tiny, tmp_path / "out", recipe="4bit", min_cosine=0.9999)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_its_own_source_and_a_foreign_folder_are_kept(tiny, four_bit, tmp_path):
    before = files(tiny)
    with pytest.raises(EmbeddingGemmaError, match="exists"):
        convert(tiny, four_bit)
    for target in (tiny, tiny.parent):
        with pytest.raises(EmbeddingGemmaError, match="holds the source"):
            convert(tiny, target, force=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").write_text("friend")
    with pytest.raises(EmbeddingGemmaError, match="no checkpoint"):
        convert(tiny, tmp_path / "letters", force=True)
    assert files(tiny) == before


def test_a_dry_run_lists_the_bytes_and_writes_nothing(tiny, four_bit, tmp_path):
    report = convert(tiny, tmp_path / "out", recipe="4bit", dry_run=True)
    assert not list(tmp_path.iterdir())
    header = 8 + int.from_bytes((four_bit / "model.safetensors").read_bytes()[:8], "little")
    total = sum(tensor["bytes"] for tensor in report.tensors)
    assert header + total == (four_bit / "model.safetensors").stat().st_size


def test_a_full_disk_leaves_nothing_and_says_so(tiny, tmp_path):
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from mlx_embeddinggemma.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "convert", str(tiny), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "failed" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fifty_kills_leave_the_old_folder_or_the_new_one(tiny, tmp_path):
    target = tmp_path / "out"
    command = [sys.executable, "-m", "mlx_embeddinggemma", "convert", str(tiny), str(target)]
    command += ["--recipe", "bf16", "--force"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole, sound = time.perf_counter() - start, files(target)
    rng = np.random.default_rng(3)
    for _ in range(50):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, 1.1 * whole))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert files(target) == sound


# tokenizers


def test_the_derived_tokenizer_model_gives_the_real_tokenizers_ids(shared, tmp_path):
    real = tmp_path / "tokenizer.json"
    packed = (shared / "tokenizer" / "tokenizer.json.xz").read_bytes()
    real.write_bytes(lzma.decompress(packed))
    (tmp_path / "tokenizer.model").write_bytes(from_json(real) or b"")
    reference = JsonTokenizer(tmp_path, 262_144)
    derived = SentencePieceTokenizer(tmp_path, 262_144)
    special = [a["content"] for a in json.loads(real.read_bytes())["added_tokens"]]
    runs = [c * n for n in range(1, 70) for c in (" ", "\n", "\t", "▁", "\0", "\r\n", "🏰", " ▁")]
    rng = np.random.default_rng(0)
    ranges = ((0, 0x300), (0x2581, 0x2582), (32, 33), (0x900, 0xD800), (0xE000, 0x110000))
    noise = [
        "".join(chr(rng.integers(*ranges[k])) for k in rng.integers(len(ranges), size=20))
        for _ in range(500)
    ]
    lines = [
        line
        for path in (shared / "tokenizer-goldens").glob("*_input.txt")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    texts = [*special, *(f" {s} x{s}" for s in special), *runs, *(f"a{r}b" for r in runs)]
    texts += [*noise, *lines]
    for text, a, b in zip(texts, reference.encode(texts), derived.encode(texts), strict=True):
        assert a == b, repr(text)


def test_a_tokenizer_whose_merges_leave_out_a_split_is_not_derived(tiny, tmp_path):
    raw = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    if not raw["model"]["merges"]:
        raw["model"]["vocab"] |= {"ab": max(raw["model"]["vocab"].values()) + 1}
    else:
        raw["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    assert from_json(tmp_path / "tokenizer.json") is None
