"""Our encoder beside other engines on the same texts, in turns, as ratios.

    python -m mlx_embeddinggemma.bench.compare ENGINE=MODEL [ENGINE=MODEL ...] --texts FILE

The first contender is the one that the others are compared with. Every contender lives in a process
of its own with the same number of threads; they take turns (A B A B), because a machine's speed
drifts; their vectors are compared with the first one's, so that a fast but wrong engine is seen. An
engine that does not start is skipped with a line that says why.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_embeddinggemma import EmbeddingGemma

from .record import machine
from .report import table
from .speed import peak_megabytes

THREADS = 2
Encode = Callable[[list[str]], np.ndarray]


def ours(model: str) -> Encode:
    """This package."""
    encoder = EmbeddingGemma(model)
    return lambda texts: np.asarray(encoder.encode(texts))


def sentence_transformers(model: str) -> Encode:
    """sentence-transformers on PyTorch, float32, its defaults."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})
    return lambda texts: np.asarray(encoder.encode(texts))


def mlx_embeddings(model: str) -> Encode:
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


def llama_cpp(model: str) -> Encode:
    """llama.cpp through llama-cpp-python; `model` is a GGUF file."""
    from llama_cpp import Llama

    encoder = Llama(
        model,
        embedding=True,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=2048,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        verbose=False,
    )
    return lambda texts: np.asarray(encoder.embed(texts, normalize=True), np.float32)


ENGINES = {
    "ours": ours,
    "sentence-transformers": sentence_transformers,
    "mlx-embeddings": mlx_embeddings,
    "llama.cpp": llama_cpp,
}


def serve(engine: str, model: str) -> None:
    """A contender's process: a JSON list of texts a line in, seconds and a file of vectors out."""
    answer = sys.stdout
    sys.stdout = sys.stderr
    encode = ENGINES[engine](model)
    encode(["warm up"])
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        vectors = encode(request["texts"])
        seconds = time.perf_counter() - start
        np.save(request["save"], vectors)
        result = {"seconds": seconds, "peak_mb": peak_megabytes()}
        print(json.dumps(result), file=answer, flush=True)


class Contender:
    """One engine with one model in a process of its own, and the samples it gave."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.samples: dict[str, list[float]] = {}
        self.worst_cosine: dict[str, float] = {}
        self.peak_mb = 0.0
        self._vectors = folder / f"{name.replace('/', '_')}.npy"
        # A file, not a pipe: nobody reads it unless the engine fails, and a full pipe would block it.
        self._errors = (folder / f"{name.replace('/', '_')}.txt").open("w+")
        engine, _, model = name.partition("=")
        threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_embeddinggemma.bench.compare", "--serve", engine, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | threads,
        )
        self.ready = bool(self._answer())
        self.cold_start = time.perf_counter() - started

    def encode(self, job: str, texts: Sequence[str]) -> np.ndarray:
        """Has the texts encoded and keeps the time; (n, dim)."""
        assert self._process.stdin is not None
        request = {"texts": list(texts), "save": str(self._vectors)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        if not (answer := self._answer()):
            raise SystemExit(f"{self.name} stopped in {job}: {self.last_words()}")
        result = json.loads(answer)
        self.samples.setdefault(job, []).append(result["seconds"])
        self.peak_mb = result["peak_mb"]
        return np.asarray(np.load(self._vectors), np.float32)

    def last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]

    def record(self) -> dict[str, Any]:
        """What was measured, for JSON."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def compare(
    names: Sequence[str], jobs: dict[str, list[str]], rounds: int, folder: Path
) -> list[Contender]:
    """Runs every job on every contender, `rounds` times, in turns.

    Args:
        names: "ENGINE=MODEL", the baseline first.
        jobs: texts by name.
        rounds: how often.
        folder: for vectors on their way.

    Returns:
        The contenders that started.
    """
    running = []
    for name in names:
        contender = Contender(name, folder)
        if contender.ready:
            running.append(contender)
        else:
            print(f"{name}: skipped: {contender.last_words()}", file=sys.stderr)
            contender.close()
    for _ in range(rounds):
        for job, texts in jobs.items():
            baseline = None
            for contender in running:
                vectors = contender.encode(job, texts)
                print(f"{job}: {contender.name} {contender.samples[job][-1]:.3f} s", file=sys.stderr)
                baseline = vectors if baseline is None else baseline
                cosine = float((vectors * baseline).sum(axis=1).min())
                worst = contender.worst_cosine.get(job, 1.0)
                contender.worst_cosine[job] = min(worst, cosine)
    for contender in running:
        contender.close()
    return running


def text_of(tokens: int, words: Sequence[str], model: EmbeddingGemma) -> str:
    """The longest run of the first words that has at most so many tokens."""
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = model.count_tokens([" ".join(words[:middle])])[0] <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contenders", nargs="*", metavar="ENGINE=MODEL", help=", ".join(ENGINES))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=Path, help="a file with a text a line")
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 256], help="of single texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the record there")
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return
    if not args.contenders or not args.texts:
        parser.error("expected ENGINE=MODEL and --texts FILE")
    for name in args.contenders:
        if name.partition("=")[0] not in ENGINES or "=" not in name:
            parser.error(f"expected ENGINE=MODEL, ENGINE one of {', '.join(ENGINES)}; got {name}")
    texts = args.texts.read_text(encoding="utf-8").splitlines()
    words = " ".join(texts).split()
    model = EmbeddingGemma(args.contenders[0].partition("=")[2])
    jobs = {f"{n:,} tokens": [text_of(n, words, model)] for n in args.lengths}
    jobs[f"{len(texts):,} texts"] = texts
    tokens = {job: sum(model.count_tokens(texts)) for job, texts in jobs.items()}
    del model
    with tempfile.TemporaryDirectory() as folder:
        contenders = compare(args.contenders, jobs, args.rounds, Path(folder))
    rows = []
    for job in jobs:
        first = statistics.median(contenders[0].samples[job])
        for contender in contenders:
            seconds = statistics.median(contender.samples[job])
            rows.append(
                [
                    job,
                    contender.name,
                    f"{seconds * 1000:,.0f}",
                    f"{tokens[job] / seconds:,.0f}",
                    f"{seconds / first:.2f}",
                    f"{contender.worst_cosine[job]:.7f}",
                ]
            )
    print(table(["job", "engine", "ms, median", "tokens/s", "times first", "worst cosine"], rows))
    rows = [[c.name, f"{c.peak_mb:,.0f}", f"{c.cold_start:.2f}"] for c in contenders]
    print("\n" + table(["engine", "peak MB", "cold start, s"], rows))
    if args.output:
        record = {
            "machine": machine(),
            "tokens": tokens,
            "contenders": [contender.record() for contender in contenders],
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
