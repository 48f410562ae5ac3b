"""Our encoder beside other engines on the same texts, in turns, as ratios.

    python -m mlx_embeddinggemma.bench.compare MODEL [--texts FILE] [--rounds N] [--output FILE.json]

Every engine lives in a process of its own with the same number of threads; the engines take turns
(A B A B), because a machine's speed drifts; their vectors are compared with ours, so that a fast but
wrong engine is seen. Engines that are not installed are skipped with a line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .record import machine
from .report import table
from .speed import peak_megabytes

THREADS = 2


def ours(model: str) -> Callable[[list[str]], np.ndarray]:
    """This package."""
    from mlx_embeddinggemma import EmbeddingGemma

    encoder = EmbeddingGemma(model)
    return lambda texts: np.asarray(encoder.encode(texts))


def sentence_transformers(model: str) -> Callable[[list[str]], np.ndarray]:
    """sentence-transformers on PyTorch, float32, its defaults."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})
    return lambda texts: np.asarray(encoder.encode(texts))


def mlx_embeddings(model: str) -> Callable[[list[str]], np.ndarray]:
    """mlx-embeddings, batches of 32."""
    import mlx.core as mx
    import mlx_embeddings

    encoder, tokenizer = mlx_embeddings.load(model)

    def encode(texts: list[str]) -> np.ndarray:
        rows = []
        for i in range(0, len(texts), 32):
            inputs = tokenizer.batch_encode_plus(
                texts[i : i + 32], return_tensors="mlx", padding=True, truncation=True, max_length=2048
            )
            output = encoder(inputs["input_ids"], attention_mask=inputs["attention_mask"])
            rows.append(np.array(output.text_embeds.astype(mx.float32)))
        return np.concatenate(rows)

    return encode


ENGINES = {
    "mlx-embeddinggemma": ours,
    "sentence-transformers": sentence_transformers,
    "mlx-embeddings": mlx_embeddings,
}


def serve(engine: str, model: str) -> None:
    """The engine's process: a JSON list of texts a line in, seconds and a file of vectors out."""
    encode = ENGINES[engine](model)
    encode(["warm up"])
    answer = sys.stdout
    sys.stdout = sys.stderr
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        vectors = encode(request["texts"])
        seconds = time.perf_counter() - start
        np.save(request["save"], vectors)
        result = {"seconds": seconds, "peak_mb": peak_megabytes()}
        print(json.dumps(result), file=answer, flush=True)


class Engine:
    """One engine's process, and the samples it gave."""

    def __init__(self, name: str, model: str):
        self.name = name
        self.samples: dict[str, list[float]] = {}
        self.peak_mb = 0.0
        self.worst_cosine = 1.0
        threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_embeddinggemma.bench.compare", model, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )
        assert self._process.stdout is not None
        self.ready = bool(self._process.stdout.readline())
        self.cold_start = time.perf_counter() - started

    def encode(self, job: str, texts: Sequence[str], save: Path) -> None:
        """Has the texts encoded and keeps the time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"texts": list(texts), "save": str(save)}), file=self._process.stdin, flush=True
        )
        result = json.loads(self._process.stdout.readline())
        self.samples.setdefault(job, []).append(result["seconds"])
        self.peak_mb = result["peak_mb"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def compare(
    model: str, jobs: dict[str, list[str]], rounds: int, engines: Sequence[str], folder: Path
) -> list[Engine]:
    """Runs every job on every engine, `rounds` times, in turns; all stay loaded, idle in between."""
    running = []
    for name in engines:
        engine = Engine(name, model)
        if engine.ready:
            running.append(engine)
        else:
            print(f"{name}: skipped, it did not start", file=sys.stderr)
    for _ in range(rounds):
        for job, texts in jobs.items():
            for engine in running:
                engine.encode(job, texts, folder / f"{engine.name}.npy")
                print(f"{job}: {engine.name} {engine.samples[job][-1]:.2f} s", file=sys.stderr)
            reference = np.load(folder / f"{running[0].name}.npy")
            for engine in running[1:]:
                cosine = (np.load(folder / f"{engine.name}.npy") * reference).sum(axis=1)
                engine.worst_cosine = min(engine.worst_cosine, float(cosine.min()))
    for engine in running:
        engine.close()
    return running


def main() -> None:
    """The command line."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder that every engine can load")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--texts", help="a file with a text a line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES)[:2], choices=list(ENGINES))
    parser.add_argument("--output", help="write the record there")
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.model)
        return
    texts = Path(args.texts).read_text(encoding="utf-8").splitlines()
    words = " ".join(texts).split()
    jobs = {
        "corpus": texts,
        "query of 16 tokens": [" ".join(words[:9])],
        "text of 256 tokens": [" ".join(words[:170])],
    }
    with tempfile.TemporaryDirectory() as folder:
        engines = compare(args.model, jobs, args.rounds, args.engines, Path(folder))
    rows = []
    for job in jobs:
        first = statistics.median(engines[0].samples[job])
        for engine in engines:
            seconds = statistics.median(engine.samples[job])
            rows.append(
                [
                    job,
                    engine.name,
                    f"{seconds * 1000:,.0f}",
                    f"{seconds / first:.2f}",
                    f"{engine.worst_cosine:.7f}",
                    f"{engine.peak_mb:,.0f}",
                    f"{engine.cold_start:.1f}",
                ]
            )
    heads = [
        "task",
        "model",
        "ms, median",
        "times ours",
        "worst cosine to ours",
        "peak MB",
        "cold start, s",
    ]
    print(table(heads, rows))
    if args.output:
        record: dict[str, Any] = {"machine": machine(), "engines": [vars(engine) for engine in engines]}
        for engine in record["engines"]:
            engine.pop("_process")
        Path(args.output).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
