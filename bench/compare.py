"""Our encoder beside other engines on the same texts, in turns, as ratios.

    python -m mlx_embeddinggemma.bench.compare ENGINE=MODEL [ENGINE=MODEL ...] --texts FILE
    python -m mlx_embeddinggemma.bench.compare FOLDER --texts FILE       (every engine that is found)

    ours=FOLDER sentence-transformers=FOLDER mlx-embeddings=FOLDER llama.cpp=FILE.gguf
    onnx=FOLDER|FILE.onnx ollama=NAME tei=URL openai=URL#NAME (also llama.cpp's server)

The first contender is the one that the others are compared with. Every contender lives in a process
of its own with the same number of threads, and is stopped (SIGSTOP) when it is not its turn, since some
engines' idle threads spin. They take turns (A B A B) with a pause between, because a machine's speed
drifts with its heat; their vectors are compared with the first one's, so that a fast but wrong engine
is seen. An engine that is not installed, not running or does not start is skipped
with a line that says why. Servers choose their own threads, and their memory is not seen.

The record: {"schema", "when", "machine", "versions", "commit", "model": as in record.py,
"texts": {"name", "sha256"}, "threads", "rounds", "pause_s", "tokens": {JOB: n}, "contenders":
[{"engine", "model", "version", "samples_s": {JOB: [s, ...]}, "worst_cosine": {JOB: cosine},
"peak_mb", "cold_start_s": process start to first vector}]}.
"""

import argparse
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mlx_embeddinggemma import EmbeddingGemma, strict_json
from mlx_embeddinggemma.errors import EmbeddingGemmaError

from . import identity
from .engines import ENGINES, THREADS
from .record import replace
from .report import table
from .speed import text_of

SCHEMA = "compare 1"
IN_A_TURN, TURN = 10, 1.0  # runs of a job in a turn at most, and seconds after which none is started
# Tried on a bare FOLDER; each is skipped where it is not found.
FOUND: tuple[str, ...] = ("ours={0}", "sentence-transformers={0}", "mlx-embeddings={0}", "onnx={0}")
FOUND += ("ollama=embeddinggemma", "tei=http://localhost:8080")


class Contender:
    """One engine with one model in a process of its own, and the samples it gave."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.engine, _, self._model = name.partition("=")
        self.samples: dict[str, list[float]] = {}
        self.worst_cosine: dict[str, float] = {}
        self.peak_mb: float | None = None
        self._vectors = folder / "vectors.npy"
        # A file, not a pipe: nobody reads it unless the engine fails, and a full pipe would block it.
        self._errors = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115
        threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_embeddinggemma.bench.engines", self.engine, self._model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | threads,
        )
        ready = self._answer()
        self.ready = bool(ready)
        self.version = strict_json.loads(ready)["version"] if ready else None
        local = ENGINES[self.engine].package is not None
        self.cold_start = time.perf_counter() - started if local else None

    def encode(self, job: str, texts: Sequence[str]) -> np.ndarray:
        """Has the texts encoded and keeps the time; (n, dim)."""
        assert self._process.stdin is not None
        request = {"texts": list(texts), "save": str(self._vectors)}
        self._process.send_signal(signal.SIGCONT)
        print(strict_json.dumps(request), file=self._process.stdin, flush=True)
        if not (answer := self._answer()):
            raise SystemExit(f"{self.name} stopped in {job}: {self.last_words()}")
        result = strict_json.loads(answer)
        self.samples.setdefault(job, []).append(result["seconds"])
        self.peak_mb = result["peak_mb"]
        return np.asarray(np.load(self._vectors), np.float32)

    def last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]

    def record(self) -> dict[str, Any]:
        """What was measured, for JSON; of paths only the last name, for records are for sharing."""
        known = "://" in self._model
        return {
            "engine": self.engine,
            "model": self._model if known else Path(self._model).name,
            "version": self.version,
            "samples_s": self.samples,
            "worst_cosine": self.worst_cosine,
            "peak_mb": self.peak_mb,
            "cold_start_s": self.cold_start,
        }

    def close(self) -> None:
        """Ends the process."""
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if answer := self._process.stdout.readline():
            self._process.send_signal(signal.SIGSTOP)
        return answer


def compare(
    names: Sequence[str], jobs: dict[str, list[str]], rounds: int, folder: Path, pause: float = 0
) -> list[Contender]:
    """Runs every job on every contender, `rounds` times, in turns.

    Args:
        names: "ENGINE=MODEL", the baseline first.
        jobs: texts by name.
        rounds: how often.
        folder: for vectors on their way.
        pause: seconds before each turn.

    Returns:
        The contenders that started.

    Raises:
        SystemExit: the baseline did not start, or a contender stopped: no figure stands then.
    """
    running = []
    with ExitStack() as opened:
        for name in names:
            contender = Contender(name, folder)
            opened.callback(contender.close)
            if contender.ready:
                running.append(contender)
                continue
            if name == names[0]:
                raise SystemExit(f"{name} did not start: {contender.last_words()}")
            print(f"{name}: skipped: {contender.last_words()}", file=sys.stderr)
        for job, texts in [*jobs.items()] * rounds:
            baseline = None
            for contender in running:
                time.sleep(pause)
                # A turn of short jobs holds several: the first one finds cold caches.
                started = time.perf_counter()
                for _ in range(IN_A_TURN):
                    vectors = contender.encode(job, texts)
                    if time.perf_counter() - started > TURN:
                        break
                print(f"{job}: {contender.name} {contender.samples[job][-1]:.3f} s", file=sys.stderr)
                baseline = vectors if baseline is None else baseline
                worst = contender.worst_cosine.get(job, 1.0)
                contender.worst_cosine[job] = min(worst, worst_cosine(vectors, baseline))
    return running


def worst_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least cosine of rows of `a` and `b`; 0 where there is none: other shapes, NaN, zeros."""
    if a.shape != b.shape:
        return 0.0
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(axis=1) / norms
    return float(cosines.min()) if np.isfinite(cosines).all() else 0.0


def show(record: dict[str, Any]) -> str:
    """The record as two tables: each job as time and ratio, then what each process took."""
    contenders = record["contenders"]
    rows = []
    for job, tokens in record["tokens"].items():
        first = statistics.median(contenders[0]["samples_s"][job])
        for contender in contenders:
            seconds = statistics.median(contender["samples_s"][job])
            rows.append(
                [
                    job,
                    label(contender),
                    f"{seconds * 1000:,.0f}",
                    f"{tokens / seconds:,.0f}",
                    f"{seconds / first:.2f}",
                    f"{contender['worst_cosine'][job]:.7f}",
                ]
            )
    jobs = table(["job", "engine", "ms, median", "tokens/s", "times first", "worst cosine"], rows)
    rows = [
        [label(c), *(number(c[key], places) for key, places in (("peak_mb", 0), ("cold_start_s", 2)))]
        for c in contenders
    ]
    return f"{jobs}\n\n{table(['engine', 'peak MB', 'start to first vector, s'], rows)}"


def count_and_tokens(length: str) -> tuple[int, int]:
    """How many texts of how many tokens: "16x2048", or "256" for a single one."""
    count, _, tokens = length.rpartition("x")
    if not (0 < int(count or 1) <= 10_000 and 0 < int(tokens) <= 10_000):
        raise ValueError(length)
    return int(count or 1), int(tokens)


def label(contender: dict[str, Any]) -> str:
    """Engine, its version and the model's name."""
    named = " ".join(filter(None, (contender["engine"], contender["version"])))
    return f"{named}: {contender['model']}"


def number(value: float | None, places: int) -> str:
    """With thousands separated; empty where nothing was measured."""
    return "" if value is None else f"{value:,.{places}f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contenders", nargs="+", metavar="ENGINE=MODEL", help=", ".join(ENGINES))
    parser.add_argument("--texts", type=Path, required=True, help="a file with a text a line")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=count_and_tokens,
        default=[(1, 16), (1, 256), (1, 2048)],
        metavar="[COUNTx]TOKENS",
        help="of single texts, or of several: 16x2048 is 16 texts of 2,048 tokens",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, default=1, metavar="SECONDS", help="before each turn")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the record there")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"expected --rounds of 1 or more, got {args.rounds}")
    if not 0 <= args.pause <= 3600:
        parser.error(f"expected --pause from 0 to 3600, got {args.pause}")
    names: list[str] = []
    for name in args.contenders:
        names += [name] if "=" in name else [one.format(name) for one in FOUND]
    for name in names:
        if name.partition("=")[0] not in ENGINES:
            usage = ", ".join(f"{engine}={about.model}" for engine, about in ENGINES.items())
            parser.error(f"expected one of {usage}; got {name}")
    if not names[0].startswith("ours="):
        parser.error(f"expected ours=FOLDER first, to count tokens and compare with; got {names[0]}")
    try:
        packed = args.texts.read_bytes()
        texts = packed.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"expected --texts to be a file with a text a line: {error}")
    if not texts:
        parser.error(f"expected --texts to be a file with a text a line; {args.texts} is empty")
    words = " ".join(texts).split()
    folder = names[0].partition("=")[2]
    try:
        model = EmbeddingGemma(folder)
    except EmbeddingGemmaError as error:
        parser.exit(1, f"{error}\n")
    jobs: dict[str, list[str]] = {}
    for count, n in args.lengths:
        # Different texts: no engine may compute one of them only.
        found = [text_of(model, n, words[start:]) for start in range(count)]
        jobs[f"{count} x {n:,} tokens" if count > 1 else f"{n:,} tokens"] = found
    # Last: engines that have stood still for minutes take up to twice their time for a single text.
    jobs[f"{len(texts):,} texts"] = texts
    tokens = {job: sum(model.count_tokens(texts)) for job, texts in jobs.items()}
    longest = max(n for _, n in args.lengths)
    if max(map(max, map(model.count_tokens, jobs.values()))) < 0.9 * longest:
        parser.error(f"{args.texts} is too short for a text of {longest:,} tokens")
    del model
    try:
        with tempfile.TemporaryDirectory() as scratch:
            contenders = compare(names, jobs, args.rounds, Path(scratch), args.pause)
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: nothing is kept\n")
    record = {
        "schema": SCHEMA,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": identity.machine(),
        "versions": identity.versions(),
        "commit": identity.commit(),
        "model": identity.model(folder),
        "texts": {"name": args.texts.name, "sha256": hashlib.sha256(packed).hexdigest()},
        "threads": THREADS,
        "rounds": args.rounds,
        "pause_s": args.pause,
        "tokens": tokens,
        "contenders": [contender.record() for contender in contenders],
    }
    print(show(record))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        replace(args.output, strict_json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
