"""The `verify` command: is this checkpoint whole, does this machine compute it right?

On Google's weights (and copies converted from them) the vectors are compared with published ones:
sentence-transformers' (set A), an independent implementation's (A2), text-embeddings-inference's
(B) and the model card's similarities. On any checkpoint: sound files, tokens, attention in both
directions, and a text's vector that does not depend on its company. What cannot be checked is said.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import blas, runtime, strict_json
from mlx_embeddinggemma.batching import pad
from mlx_embeddinggemma.encoder import EmbeddingGemma
from mlx_embeddinggemma.json_files import read_json

GOLDEN = Path(__file__).parent / "golden"
# Cosine to a float32 golden vector. Two right float32 implementations differ by 1e-7; bfloat16 and
# quantized copies by what their rounding costs, far from the 0.9 and less of a causal run.
FLOAT32_COSINE = 0.99999
COPY_COSINE = 0.95


@dataclass(frozen=True)
class Check:
    """One check: True passed, False failed, None could not be made."""

    name: str
    passed: bool | None
    detail: str


def verify(model: str | Path) -> list[Check]:
    """Runs every check that applies to a checkpoint.

    Raises:
        EmbeddingGemmaError: it does not load at all; the message says why.
    """
    encoder = EmbeddingGemma(model)
    golden = strict_json.loads((GOLDEN / "goldens.json").read_bytes())
    return [
        _machine(),
        *_files(encoder.folder, golden),
        *_published(encoder, golden),
        *_invariants(encoder),
    ]


def print_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """Writes the checks to standard output."""
    if as_json:
        print(strict_json.dumps([asdict(check) for check in checks], indent=2))
        return
    marks = {True: "ok  ", False: "FAIL", None: "-   "}
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{marks[check.passed]}  {check.name:{width}}  {check.detail}")
    failed = sum(check.passed is False for check in checks)
    passed = sum(check.passed is True for check in checks)
    print(f"\n{passed} passed, {failed} failed, {len(checks) - passed - failed} not applicable")


def _machine() -> Check:
    n = 1024
    a = mx.random.normal((n, n))
    mx.eval(a @ a)
    start = time.perf_counter()
    mx.eval(a @ a)
    speed = 2 * n**3 / (time.perf_counter() - start) / 1e9
    device = "GPU" if runtime.on_gpu() else f"CPU, BLAS {blas.use_openblas() or 'as MLX links it'}"
    return Check("machine", None, f"MLX {version('mlx')}, {device}, {speed:,.0f} GFLOP/s float32")


def _files(folder: Path, golden: dict[str, Any]) -> Iterator[Check]:
    source = _source_hashes(folder)
    pinned = golden["sha256"]
    same = [name for name, value in pinned.items() if source.get(name) == value]
    weights = [name for name in pinned if name.endswith(".safetensors")]
    if all(name in same for name in weights):
        # Some files (tokenizer_config.json) differ between downloads without changing a vector.
        yield Check(
            "files",
            True,
            f"weights are {golden['model']} at {golden['revision'][:8]}; "
            f"{len(same)} of {len(pinned)} files byte for byte",
        )
    else:
        yield Check("files", None, "not Google's published weights: no sha256 to compare with")


def _source_hashes(folder: Path) -> dict[str, str]:
    """Sha256 of the folder's files, or of what it was converted from."""
    if (folder / "conversion.json").exists():
        record = read_json(folder / "conversion.json")
        inputs = record.get("inputs") if isinstance(record, dict) else None
        return inputs if isinstance(inputs, dict) else {}
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".model")]
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        hashes[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return hashes


def _published(encoder: EmbeddingGemma, golden: dict[str, Any]) -> Iterator[Check]:
    source = _source_hashes(encoder.folder)
    weights = "model.safetensors"
    if source.get(weights) != golden["sha256"][weights]:
        yield Check(
            "published vectors", None, "only for google/embeddinggemma-300m and copies made of it"
        )
        return
    ids = encoder.tokenize(list(golden["token_ids"]))
    same = ids == list(golden["token_ids"].values())
    yield Check("token ids", same, "against the published tokenizer's")
    exact = not (encoder.folder / "conversion.json").exists()
    least = FLOAT32_COSINE if exact else COPY_COSINE
    vectors = np.split(
        np.load(GOLDEN / "vectors.npy"), np.cumsum([row["dim"] for row in golden["texts"]])[:-1]
    )
    for name in ("A", "A2", "B"):
        cosines = [
            float(encoder.encode(row["text"], prompt=row["prompt"], truncate_dim=row["dim"]) @ vector)
            for row, vector in zip(golden["texts"], vectors, strict=True)
            if row["set"] == name
        ]
        worst = float(np.min(cosines))  # the built-in min may pass over a NaN
        yield Check(
            f"golden set {name}",
            worst >= least,
            f"{len(cosines)} vectors, worst cosine {worst:.7f}, expected {least} or more",
        )
    planet = golden["red_planet"]
    scores = encoder.similarity(
        encoder.encode_query(planet["query"]), encoder.encode_document(planet["documents"])
    )[0]
    right, causal = (
        float(np.abs(scores - np.array(planet[key])).max()) for key in ("expected", "causal")
    )
    verdict = "the attention is CAUSAL" if causal < right else f"off by {right:.4f} at most"
    tolerance = 5e-4 if exact else 0.1
    yield Check("model card similarities", right <= tolerance and right < causal, verdict)


def _invariants(encoder: EmbeddingGemma) -> Iterator[Check]:
    texts = [
        "short",
        "A sentence of middling length, with a comma.",
        "word " * 400,
        "",
        "日本語 🎉",
    ]
    together = encoder.encode(texts, prompt_name="query" if "query" in encoder.prompts else None)
    prompt = encoder.prompts.get("query", "")
    alone = np.stack([encoder.encode(text, prompt=prompt) for text in texts])
    worst = float(np.abs(together - alone).max())
    tolerance = 2e-6 if encoder.dtype == "float32" else 2e-2
    yield Check(
        "alone = in a batch", worst <= tolerance, f"off by {worst:.1e} at most, {encoder.dtype}"
    )
    errors = [
        float(np.abs(np.linalg.norm(encoder.encode(texts, truncate_dim=d), axis=1) - 1).max())
        for d in encoder.dimensions
    ]
    dims = ", ".join(map(str, encoder.dimensions))
    yield Check("unit length", bool(np.max(errors) < 1e-5), f"at {dims} dimensions")
    ids, lengths = pad(encoder.tokenize(["a b c d e f g", "a b c d e f h"]))
    one, other = np.array(encoder.network.hidden_states(ids, lengths)[:, 0].astype(mx.float32))
    yield Check(
        "both directions",
        bool((np.abs(one - other) > 0).any()),  # NaN differs from NaN, and by no number
        "the first token's state depends on the last token",
    )
