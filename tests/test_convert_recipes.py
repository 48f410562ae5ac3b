"""What `convert` writes: loads everywhere, says what it lost, and is whole or absent."""

import json

import checkpoints
import mlx.core as mx
import numpy as np
import pytest

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.convert import convert

TEXTS = ["the first text", "in the thin thing " * 40, ""]


@pytest.mark.parametrize(("recipe", "least"), [("bf16", 0.999), ("8bit", 0.995), ("4bit", 0.8)])
def test_a_recipe_keeps_the_vectors(tiny, tmp_path, recipe, least):
    report = convert(tiny, tmp_path / "out", recipe=recipe)
    model = EmbeddingGemma(tmp_path / "out")
    cosine = (model.encode(TEXTS) * EmbeddingGemma(tiny).encode(TEXTS)).sum(axis=1)
    assert cosine.min() > least
    assert report.fidelity[768].mean > least
    assert model.prompts == EmbeddingGemma(tiny).prompts
    recorded = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert recorded["inputs"].keys() >= {"config.json", "model.safetensors", "2_Dense/model.safetensors"}


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_mlx_quantize_of_the_sources(tiny, tmp_path, bits):
    convert(tiny, tmp_path / "out", recipe=f"{bits}bit", dtype="float32")
    source, packed = open_checkpoint(tiny), open_checkpoint(tmp_path / "out")
    assert "embed_tokens" in packed.quantization and "dense.1" in packed.quantization
    for path, settings in packed.quantization.items():
        assert settings == {"group_size": 64, "bits": bits, "mode": "affine"}
        expected = mx.quantize(source.tensors[f"{path}.weight"].read(), group_size=64, bits=bits)
        for name, array in zip(("weight", "scales", "biases"), expected, strict=True):
            assert mx.array_equal(packed.tensors[f"{path}.{name}"].read(), array), f"{path}.{name}"


def test_mlx_embeddings_loads_the_same_vectors(tmp_path):
    """A short text, as that package has no window, and the head it knows: D to 4 D to D."""
    peer = pytest.importorskip("mlx_embeddings", reason="not installed: a GPL package, tested by hand")
    checkpoints.write_tiny(tmp_path / "m", dense=(768, 192))
    convert(tmp_path / "m", tmp_path / "out", recipe="8bit", dtype="float32")
    theirs, _ = peer.load(str(tmp_path / "out"))
    model, text = EmbeddingGemma(tmp_path / "out"), "a short text about the sea"
    ids = mx.array(model.tokenize([text]))
    vector = theirs(ids, attention_mask=mx.ones(ids.shape, mx.int32)).text_embeds[0]
    assert float(np.array(vector.astype(mx.float32)) @ model.encode(text)) > 0.999


def test_converting_twice_gives_the_same_bytes(tiny, tmp_path):
    for name in ("a", "b"):
        convert(tiny, tmp_path / name, recipe="4bit")
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_existing_folder_stays_as_it_is(tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(EmbeddingGemmaError, match="exists"):
        convert(tiny, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unknown_recipe_is_an_error_that_lists_the_known_ones(tiny, tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="8bit, 4bit, mixed"):
        convert(tiny, tmp_path / "out", recipe="3bit-magic")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_leaves_nothing(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EmbeddingGemmaError, match="not a safetensors file"):
        convert(tmp_path / "m", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
