"""4bit-tuned: what it knows about the network is right, and what it writes is better."""

import hashlib
import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.convert import RECIPES, convert, tuning
from mlx_embeddinggemma.convert.budget import within_budget
from mlx_embeddinggemma.convert.formats import DTYPES, pack
from mlx_embeddinggemma.convert.recipes import affine
from mlx_embeddinggemma.convert.rounding import feedback, round_rows
from mlx_embeddinggemma.convert.sensitivity import Hessians, hessians
from mlx_embeddinggemma.convert.sources import open_folder

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

TEXTS = [f"text {i} of the calibration, number {i * i}" for i in range(40)]
ENGLISH = [
    "A dog runs along the beach.",
    "Two women are cooking soup in a small kitchen.",
    "How do I reset the password of my account?",
    "The river rose after three days of rain.",
    "I think you should read the manual first.",
    "Prices fell by two percent in the last quarter.",
]
BUNDLED = tuning.TEXTS
UNSEEN = ["Mars is the red planet.", "Простой текст", "短い文", "a dog in the rain", "def f(x): x"]


@pytest.fixture(scope="module", autouse=True)
def small_samples(tmp_path_factory):
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.setattr("mlx_embeddinggemma.convert.conversion.SAMPLE", TEXTS[:12])
    patch.setattr("mlx_embeddinggemma.convert.conversion.TEXTS", texts)
    yield
    patch.undo()


def dequantized(packed, chosen) -> np.ndarray:
    scales, biases = (packed[name].astype(mx.float32) for name in ("scales", "biases"))
    return np.array(mx.dequantize(packed["weight"], scales, biases, **chosen.settings))


@pytest.mark.parametrize("path", ["layers.1.mlp.down_proj", "layers.2.self_attn.o_proj", "dense.1"])
def test_the_hessian_foretells_what_random_errors_do_to_the_vectors(path, tiny):
    source = open_folder(tiny)
    encoder = EmbeddingGemma(tiny)
    ids = encoder.tokenize(TEXTS)
    h = hessians(source, ids, lambda n: None)[path]
    linear = dict(encoder.network.named_modules())[path]
    weight, before = linear.weight, encoder.encode(TEXTS)
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(4):
        e = 1e-3 * np.array(weight).std() * rng.standard_normal(weight.shape).astype(np.float32)
        linear.weight = weight + mx.array(e)
        mx.eval(linear.weight)  # the encoder runs batches in other threads
        moved = ((encoder.encode(TEXTS) - before) ** 2).sum(axis=1).mean()
        ratios.append(moved / ((e @ h) * e).sum(axis=1).mean())
    linear.weight = weight
    assert 0.5 < np.mean(ratios) < 2


def test_hessians_are_means_over_all_texts_whatever_their_batches():
    one, other = (np.random.default_rng(i).random((8, 8), np.float32) for i in (0, 1))
    found = Hessians(texts=5)
    for h in (one, other):
        found.add("dense.0", mx.array(h))
        found.add("dense.1", mx.array(h[:4, :4]))
    np.testing.assert_allclose(found["dense.0"], (one + other) / 5, rtol=1e-6)
    np.testing.assert_allclose(found["dense.1"], (one + other)[:4, :4] / 5, rtol=1e-6)
    assert list(found) == ["dense.0", "dense.1"]


def test_bits_go_where_an_error_shows(tiny):
    source = open_folder(tiny)
    paths = ("embed_tokens", "layers.0.mlp.down_proj", "layers.1.mlp.down_proj", "dense.0", "dense.1")

    def bits(**weights: float) -> dict[str, int]:
        found = {
            path: np.float32(weights.get(path.split(".")[-1], 1))
            * np.eye(source.matrices[path].shape[1], dtype=np.float32)
            for path in paths
        }
        chosen = within_budget(RECIPES["4bit-tuned"], source, found, "bfloat16")
        return {path: f.bits for path in paths if (f := chosen.format_of(path))}

    alike = bits()
    assert bits(embed_tokens=1e4)["embed_tokens"] > alike["embed_tokens"]
    assert bits(embed_tokens=1e-4)["embed_tokens"] == 2 < alike["embed_tokens"]


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_the_estimate_of_a_rounding_holds_at_every_number_of_bits(bits, tiny):
    source = open_folder(tiny)
    encoder = EmbeddingGemma(tiny)
    path, chosen = "layers.4.mlp.down_proj", affine(bits, 64)
    h = hessians(source, encoder.tokenize(TEXTS), lambda n: None)[path]
    linear, before = dict(encoder.network.named_modules())[path], encoder.encode(TEXTS)
    weight = linear.weight
    linear.weight = mx.array(dequantized(pack(weight, chosen, "float32"), chosen))
    e = np.array(linear.weight - weight)
    moved = ((encoder.encode(TEXTS) - before) ** 2).sum(axis=1).mean()
    assert 0.5 < moved / ((e @ h) * e).sum(axis=1).mean() < 2


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_rounding_with_feedback_costs_less_where_it_matters(bits):
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((128, 16)) @ rng.standard_normal((16, 128))
    x = (mixed + 0.3 * rng.standard_normal((128, 128))).astype(np.float32)
    h, chosen = x.T @ x, affine(bits, 64)
    rows = mx.array(rng.standard_normal((96, 128)).astype(np.float32))

    def cost(packed) -> float:
        e = dequantized(packed, chosen) - np.array(rows)
        return float(((e @ h) * e).sum())

    tuned = round_rows(rows, feedback(h), chosen, mx.bfloat16)
    plain = pack(rows, chosen, "bfloat16")
    assert {k: (v.dtype, v.shape) for k, v in tuned.items()} == {
        k: (v.dtype, v.shape) for k, v in plain.items()
    }
    assert cost(tuned) < 0.5 * cost(plain)


def test_constant_rows_survive():
    rows = mx.array(np.repeat(np.array([[0.0], [1.0], [-3e-5]], np.float32), 64, axis=1))
    packed = round_rows(rows, feedback(np.eye(64, dtype=np.float32)), affine(4, 64), DTYPES["float32"])
    np.testing.assert_allclose(dequantized(packed, affine(4, 64)), np.array(rows), atol=1e-6)


def test_it_is_better_than_plain_four_bits_within_its_budget(tiny, tmp_path):
    tuned = convert(tiny, tmp_path / "tuned", recipe="4bit-tuned")
    convert(tiny, tmp_path / "plain", recipe="4bit")
    assert tuned.parts[-1]["bits"] <= 4.7
    source = EmbeddingGemma(tiny).encode(UNSEEN)
    lost = {
        name: float((1 - (EmbeddingGemma(tmp_path / name).encode(UNSEEN) * source).sum(axis=1)).mean())
        for name in ("tuned", "plain")
    }
    assert lost["tuned"] < 0.5 * lost["plain"]
    record = json.loads((tmp_path / "tuned" / "conversion.json").read_text())
    assert record["recipe"]["budget"] == 4.7 and len(record["recipe"]["rules"]) > 7
    digest = hashlib.sha256("\n".join(TEXTS).encode()).hexdigest()
    assert record["inputs"]["calibration/texts.txt"] == digest
    again = convert(tiny, tmp_path / "again", recipe="4bit-tuned")
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("tuned", "again"))
    assert one == other and again.fidelity == tuned.fidelity


def test_the_demo_loses_less_than_a_third_of_what_it_loses_at_plain_four_bits(demo, tmp_path):
    convert(demo, tmp_path / "tuned", recipe="4bit-tuned", calibration=BUNDLED)
    convert(demo, tmp_path / "plain", recipe="4bit")
    lost = {}
    source = EmbeddingGemma(demo).encode(ENGLISH, prompt_name="STS")
    for name in ("tuned", "plain"):
        vectors = EmbeddingGemma(tmp_path / name).encode(ENGLISH, prompt_name="STS")
        lost[name] = float((1 - (vectors * source).sum(axis=1)).mean())
    assert lost["tuned"] < 0.25 * lost["plain"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"\0\1\2", "is binary"), (b"one\ntwo\n", "at least 32")],
)
def test_calibration_texts_that_do_not_serve_are_refused(content, message, tiny, tmp_path):
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EmbeddingGemmaError, match=message):
        convert(tiny, tmp_path / "out", recipe="4bit-tuned", calibration=file)


def test_calibration_texts_for_a_recipe_without_a_budget_are_refused(tiny, tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="no use for calibration"):
        convert(tiny, tmp_path / "out", recipe="4bit", calibration=tmp_path / "mine.txt")


def test_a_full_temporary_folder_leaves_nothing_and_says_so(tiny, tmp_path):
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from mlx_embeddinggemma.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "convert", str(tiny), str(tmp_path / "out")]
    done = subprocess.run([*command, "--recipe", "4bit-tuned"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "TMPDIR" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
