"""Speed and memory of one checkpoint in a process of its own.

    python -m mlx_embeddinggemma.bench.speed MODEL        (prints JSON)

A fresh process, because a peak of memory belongs to a process, and so does a cold start.
"""

import ctypes
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mlx_embeddinggemma import strict_json
from mlx_embeddinggemma.errors import EmbeddingGemmaError

LENGTHS = (16, 64, 256, 512, 2048)  # tokens of a single query
BATCH_SIZES = (1, 4, 16, 64)  # texts of some 64 tokens
PARAGRAPHS, QUESTIONS = 32, 64  # of the mixed corpus
# Seconds to repeat a measurement in, and how often at most.
BUDGET, AT_MOST = 0.25, 20


def measure(model: str) -> dict[str, Any]:
    """Runs this file on a model in a fresh process.

    Returns:
        {"load_s", "first_vector_s": from the start of the process to the first vector,
        "latency": [{"tokens", "samples_s"}] of a single text,
        "batches": [{"texts", "tokens", "samples_s"}] of texts of one length,
        "corpus": {"texts", "tokens", "samples_s"} of mixed lengths,
        "memory_mb": {"idle", "idle_peak", "load_peak"} of the process and
        "mlx_mb": {"idle", "load_peak"} of MLX's buffers, in 2^20 bytes}.

    Raises:
        EmbeddingGemmaError: the process failed; the message is its last words.
    """
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, model, repr(started)], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EmbeddingGemmaError(f"measuring {model} failed: {last:.300}")
    result: dict[str, Any] = strict_json.loads(done.stdout)
    return result


def peak_megabytes() -> float:
    """The process's own peak of memory: its footprint on a Mac, resident pages elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent's memory at the time of the fork
        return _proc_status("VmHWM")
    if platform.system() == "Darwin":
        return _mac_footprint()[1]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def memory_megabytes() -> float:
    """What the process holds now."""
    if Path("/proc/self/status").exists():
        return _proc_status("VmRSS")
    return _mac_footprint()[0] if platform.system() == "Darwin" else peak_megabytes()


def _proc_status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def _mac_footprint() -> tuple[float, float]:
    """Now and at its peak: what Activity Monitor calls memory, Metal's buffers included.

    Field 7 and 28 of `rusage_info_v4` in <sys/resource.h>, after 16 bytes of uuid.
    """
    words = (ctypes.c_uint64 * 64)()
    ctypes.CDLL(None).proc_pid_rusage(os.getpid(), 4, ctypes.byref(words))
    return words[2 + 7] / 2**20, words[2 + 28] / 2**20


def text_of(model: Any, tokens: int, words: Sequence[str]) -> str:
    """The longest run of the first words that has at most so many tokens, bos and eos counted."""
    low, high = 1, min(len(words), tokens)
    while low < high:
        middle = (low + high + 1) // 2
        fits = model.count_tokens([" ".join(words[:middle])])[0] <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


def english(start: int = 0) -> list[str]:
    """Words of real English, from a paragraph on."""
    paragraphs, _ = corpus()
    return " ".join(paragraphs[start:] + paragraphs[:start]).split()


@cache
def corpus() -> tuple[list[str], list[str]]:
    """Paragraphs and questions about them."""
    from .tasks import Retrieval, load

    (task,) = load(["XQuADRetrieval-en"])
    assert isinstance(task, Retrieval)
    return task.documents, task.queries


def _sample(function: Callable[[], object]) -> list[float]:
    """Seconds of each of several runs, after one that does not count."""
    function()
    samples: list[float] = []
    while not samples or (len(samples) < AT_MOST and sum(samples) < BUDGET):
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return samples


def main() -> None:
    """Loads, answers a first query, then times single texts, batches and a mixed corpus."""
    model_name, started = sys.argv[1], float(sys.argv[2])
    before = time.perf_counter()
    import mlx.core as mx

    from mlx_embeddinggemma import EmbeddingGemma

    model = EmbeddingGemma(model_name)
    result: dict[str, Any] = {"load_s": time.perf_counter() - before}
    model.encode_query("first")
    result["first_vector_s"] = time.time() - started
    result["memory_mb"] = {"idle": memory_megabytes(), "idle_peak": peak_megabytes()}
    result["mlx_mb"] = {"idle": mx.get_active_memory() / 2**20}

    result["latency"] = []
    for length in LENGTHS:
        text = text_of(model, length, english())
        samples = _sample(lambda text=text: model.encode(text))  # type: ignore[misc]
        result["latency"].append({"tokens": length, "samples_s": samples})
    result["batches"] = []
    texts = [text_of(model, 64, english(start)) for start in range(max(BATCH_SIZES))]
    for size in BATCH_SIZES:
        result["batches"].append(_throughput(model, texts[:size]))
    paragraphs, questions = corpus()
    result["corpus"] = _throughput(model, paragraphs[:PARAGRAPHS] + questions[:QUESTIONS])
    result["memory_mb"]["load_peak"] = peak_megabytes()
    result["mlx_mb"]["load_peak"] = mx.get_peak_memory() / 2**20
    print(strict_json.dumps(result))


def _throughput(model: Any, texts: list[str]) -> dict[str, Any]:
    return {
        "texts": len(texts),
        "tokens": sum(model.count_tokens(texts)),
        "samples_s": _sample(lambda: model.encode(texts)),
    }


if __name__ == "__main__":
    main()
