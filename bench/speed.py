"""Speed and memory of one checkpoint in a process of its own.

    python -m mlx_embeddinggemma.bench.speed MODEL        (prints JSON)

A fresh process, because a peak of memory belongs to a process, and so does a cold start.
"""

import json
import platform
import resource
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError

LENGTHS = (16, 64, 256, 512)  # tokens of a single query
REPEATS = 12
CORPUS_TEXTS = 192


def measure(model: str) -> dict[str, Any]:
    """Runs this file on a model and returns what it measured; see `main`."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, model, repr(started)], capture_output=True, text=True
    )
    if done.returncode:
        raise EmbeddingGemmaError(f"measuring {model} failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def peak_megabytes() -> float:
    """The process's own peak of resident memory."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent's memory at the time of the fork
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Loads, answers a first query, then times single texts and a mixed corpus."""
    model_name, started = sys.argv[1], float(sys.argv[2])
    before = time.perf_counter()
    import mlx.core as mx

    from mlx_embeddinggemma import EmbeddingGemma

    model = EmbeddingGemma(model_name)
    load = time.perf_counter() - before
    model.encode_query("first")
    first = time.time() - started
    idle = peak_megabytes()
    latency = {}
    for tokens in LENGTHS:
        text = _text(model, tokens)
        model.encode(text)
        samples = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            model.encode(text)
            samples.append(time.perf_counter() - start)
        latency[tokens] = samples
    texts = [_text(model, 8 + 37 * i % 249) for i in range(CORPUS_TEXTS)]
    # Distinct texts, or each would be computed once for all its copies.
    texts = [f"{i} {text}" for i, text in enumerate(texts)]
    tokens = sum(model.count_tokens(texts))
    start = time.perf_counter()
    model.encode(texts)
    seconds = time.perf_counter() - start
    json.dump(
        {
            "load_s": load,
            "first_vector_s": first,
            "latency_s": latency,
            "corpus": {"texts": len(texts), "tokens": tokens, "seconds": seconds},
            "peak_mb": {"after_first_vector": idle, "under_load": peak_megabytes()},
            "mlx_peak_mb": mx.get_peak_memory() / 2**20,
        },
        sys.stdout,
    )


def _text(model: Any, tokens: int) -> str:
    """A text of about that many tokens, bos and eos counted."""
    words = "the river carried small boats past quiet fields while people talked about work"
    text = " ".join(islice(cycle(words.split()), tokens))
    ids = model.count_tokens([text])[0]
    return " ".join(text.split()[: max(1, round((tokens - 2) * tokens / ids))])


if __name__ == "__main__":
    main()
