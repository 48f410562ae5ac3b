"""`verify` tells right from wrong on weights whose published vectors it knows.

The real weights cannot be had here, so a tiny checkpoint stands in for them: its hashes and its
reference vectors (transformers') take the place of the shipped ones.
"""

import hashlib
import json

import checkpoints
import faults
import numpy as np
import pytest
from mlx_embeddinggemma.convert import convert

from mlx_embeddinggemma import model, verify
from mlx_embeddinggemma.verify import GOLDEN

pytest.importorskip("torch", reason="needs the extra `reference`")
reference = pytest.importorskip("reference")


@pytest.fixture
def published(tiny, tmp_path, monkeypatch):
    """Golden files in the shipped form, made by transformers from the tiny checkpoint."""
    golden = json.loads((GOLDEN / "goldens.json").read_text())
    st = reference.sentence_transformer(tiny)
    files = [p for p in tiny.rglob("*") if p.suffix in (".json", ".safetensors")]
    golden["sha256"] = {
        p.relative_to(tiny).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    for row in golden["texts"]:
        row["text"] = row["text"][:300]
    vectors = st.encode([row["prompt"] + row["text"] for row in golden["texts"]])
    cut = [v[: row["dim"]] for v, row in zip(vectors, golden["texts"], strict=True)]
    np.save(tmp_path / "vectors.npy", np.concatenate([v / np.linalg.norm(v) for v in cut]))
    planet = golden["red_planet"]
    query = st.encode(planet["query"], prompt_name="query")
    documents = st.encode(planet["documents"], prompt_name="document")
    planet["expected"] = (documents @ query).tolist()
    tokens = st.tokenizer(list(golden["token_ids"]))["input_ids"]
    golden["token_ids"] = dict(zip(golden["token_ids"], tokens, strict=True))
    (tmp_path / "goldens.json").write_text(json.dumps(golden))
    monkeypatch.setattr(verify, "GOLDEN", tmp_path)
    return tiny, golden, tmp_path


def results(folder) -> dict:
    return {check.name: check for check in verify.verify(folder)}


def test_right_weights_pass_every_check(published):
    checks = results(published[0])
    names = {"files", "token ids", "golden set A", "golden set A2", "golden set B"}
    assert {name for name, check in checks.items() if check.passed} >= names
    assert checks["model card similarities"].passed
    assert not [check for check in checks.values() if check.passed is False]


def test_a_converted_copy_is_compared_too(published, tmp_path):
    convert(str(published[0]), tmp_path / "8bit", recipe="8bit")
    checks = results(tmp_path / "8bit")
    assert checks["files"].passed
    assert checks["golden set A"].passed
    assert checks["golden set A"].detail.endswith("expected 0.95 or more")


def test_a_causal_run_is_called_one(published, monkeypatch):
    folder, golden, path = published
    monkeypatch.setattr(model, "spans", faults.causal)
    broken = verify.EmbeddingGemma(folder)
    planet = golden["red_planet"]
    scores = broken.similarity(
        broken.encode_query(planet["query"]), broken.encode_document(planet["documents"])
    )
    planet["causal"] = scores[0].tolist()
    (path / "goldens.json").write_text(json.dumps(golden))
    checks = results(folder)
    assert not checks["golden set A"].passed
    assert checks["model card similarities"].detail == "the attention is CAUSAL"
    assert not checks["both directions"].passed


def test_other_weights_are_not_compared_with_googles(tmp_path):
    checks = results(checkpoints.write_tiny(tmp_path / "m", seed=5))
    assert checks["files"].passed is None
    assert checks["published vectors"].passed is None
    assert checks["alone = in a batch"].passed


def test_the_shipped_goldens_are_whole():
    golden = json.loads((GOLDEN / "goldens.json").read_text())
    sizes = [row["dim"] for row in golden["texts"]]
    vectors = np.split(np.load(GOLDEN / "vectors.npy"), np.cumsum(sizes)[:-1])
    assert {row["set"] for row in golden["texts"]} == {"A", "A2", "B"}
    assert len(golden["texts"]) == 34
    assert all(abs(np.linalg.norm(v) - 1) < 1e-5 for v in vectors)
    assert golden["red_planet"]["expected"] == [0.3011, 0.6359, 0.493, 0.4889]
    assert len(golden["sha256"]["model.safetensors"]) == 64
