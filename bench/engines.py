"""The engines that `compare` sets beside ours, each in a process of its own.

    python -m mlx_embeddinggemma.bench.engines ENGINE MODEL      (what `compare` starts)

Reads requests, a line of JSON each: {"texts": [...], "save": a file for the vectors}, and answers with
{"seconds", "peak_mb"}. Imports nothing that the engine itself does not need: its start and its memory
are measured.
"""

import os
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_embeddinggemma import strict_json

from .speed import peak_megabytes

THREADS = 2
BATCH = 32
MAX_TOKENS = 2048
Encode = Callable[[list[str]], np.ndarray]


def ours(model: str) -> Encode:
    """This package."""
    from mlx_embeddinggemma import EmbeddingGemma

    encoder = EmbeddingGemma(model)
    return lambda texts: np.asarray(encoder.encode(texts))


def sentence_transformers(model: str) -> Encode:
    """sentence-transformers on PyTorch, its defaults: a GPU where there is one, the weights' dtype."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    encoder = SentenceTransformer(model, model_kwargs={"dtype": "auto"})
    return lambda texts: np.asarray(encoder.encode(texts))


def mlx_embeddings(model: str) -> Encode:
    """mlx-embeddings, in batches."""
    import mlx.core as mx
    import mlx_embeddings

    encoder, tokenizer = mlx_embeddings.load(model)

    def encode(texts: list[str]) -> np.ndarray:
        inputs = tokenizer.batch_encode_plus(
            texts, return_tensors="mlx", padding=True, truncation=True, max_length=MAX_TOKENS
        )
        output = encoder(inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return np.array(output.text_embeds.astype(mx.float32))

    return in_batches(encode)


def llama_cpp(model: str) -> Encode:
    """llama.cpp through llama-cpp-python; `model` is a GGUF file."""
    from llama_cpp import Llama

    encoder = Llama(
        model,
        embedding=True,
        n_ctx=MAX_TOKENS,
        n_batch=MAX_TOKENS,
        n_ubatch=MAX_TOKENS,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        verbose=False,
    )
    return lambda texts: np.asarray(encoder.embed(texts, normalize=True), np.float32)


def onnx(model: str) -> Encode:
    """ONNX Runtime on the CPU, in batches.

    Args:
        model: an .onnx file, or a folder laid out as onnx-community/embeddinggemma-300m-ONNX:
            tokenizer.json, onnx/model.onnx. Of its outputs `sentence_embedding` counts; a file that
            has none is an encoder without its dense head, and its mean shows in the cosine.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    path = Path(model)
    if path.is_dir():
        path /= "onnx/model.onnx" if (path / "onnx").is_dir() else "model.onnx"
    if not path.is_file():
        sys.exit(f"no file {path}")
    # Beside the file, or beside its folder onnx/.
    beside = path.parent if (path.parent / "tokenizer.json").is_file() else path.parent.parent
    tokenizer = Tokenizer.from_str((beside / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    wanted = "sentence_embedding" if "sentence_embedding" in outputs else outputs[0]

    def encode(texts: list[str]) -> np.ndarray:
        rows = tokenizer.encode_batch(texts)
        mask = np.array([row.attention_mask for row in rows])
        inputs = {"input_ids": np.array([row.ids for row in rows]), "attention_mask": mask}
        (vectors,) = session.run([wanted], inputs)
        if vectors.ndim == 3:
            vectors = (vectors * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return np.asarray(vectors, np.float32)

    return in_batches(encode)


def ollama(model: str) -> Encode:
    """A running Ollama: `model` is the name it knows; OLLAMA_HOST says where it is not the usual."""
    host = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")
    url = host if "://" in host else f"http://{host}"
    return lambda texts: np.array(
        post(f"{url}/api/embed", {"model": model, "input": texts})["embeddings"], np.float32
    )


def text_embeddings_inference(model: str) -> Encode:
    """A running text-embeddings-inference: `model` is its URL. It takes 32 texts at most."""
    return in_batches(
        lambda texts: np.array(
            post(f"{model.rstrip('/')}/embed", {"inputs": texts, "truncate": True}), np.float32
        )
    )


def openai(model: str) -> Encode:
    """Any server of OpenAI's interface, llama.cpp's too: URL#MODEL, http://localhost:8080/v1#gemma.

    OPENAI_API_KEY is sent where it is set.
    """
    url, _, name = model.partition("#")
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def encode(texts: list[str]) -> np.ndarray:
        answer = post(f"{url.rstrip('/')}/embeddings", {"model": name, "input": texts}, headers)
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return np.array([row["embedding"] for row in rows], np.float32)

    return in_batches(encode)


class Engine(NamedTuple):
    """What loads an engine, the Python package it is, and what its MODEL is called."""

    load: Callable[[str], Encode]
    package: str | None  # None: a server, whose memory and start are not this process's
    model: str


ENGINES = {
    "ours": Engine(ours, "mlx-embeddinggemma", "FOLDER"),
    "sentence-transformers": Engine(sentence_transformers, "sentence-transformers", "FOLDER"),
    "mlx-embeddings": Engine(mlx_embeddings, "mlx-embeddings", "FOLDER"),
    "llama.cpp": Engine(llama_cpp, "llama-cpp-python", "FILE.gguf"),
    "onnx": Engine(onnx, "onnxruntime", "FOLDER|FILE.onnx"),
    "ollama": Engine(ollama, None, "NAME"),
    "tei": Engine(text_embeddings_inference, None, "URL"),
    "openai": Engine(openai, None, "URL#NAME"),
}


def in_batches(encode: Encode) -> Encode:
    """`encode` of BATCH texts at a time, of like length, in the caller's order again.

    Sorted, as sentence-transformers and we do by ourselves: the peers shall not pay for padding.
    """

    def encode_all(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        rows = np.concatenate([encode([texts[i] for i in batch]) for batch in batches])
        return np.asarray(rows[np.argsort(order)])

    return encode_all


def post(url: str, body: object, headers: dict[str, str] | None = None) -> Any:
    """A server's answer to a JSON request."""
    request = urllib.request.Request(
        url, strict_json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
    )
    with urllib.request.urlopen(request) as answer:
        return strict_json.loads(answer.read())


def main(argv: Sequence[str]) -> None:
    """Loads the engine, encodes a first text, says so, and serves."""
    answer = sys.stdout
    sys.stdout = sys.stderr  # whatever an engine prints is not an answer
    engine = ENGINES[argv[0]]
    try:
        encode = engine.load(argv[1])
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: pip install {engine.package}")
    except OSError as error:
        sys.exit(f"{argv[0]} cannot load {argv[1]}: {error}")
    try:
        encode(["warm up"])
    except OSError as error:  # a URLError is one
        sys.exit(f"no answer from {argv[0]} ({argv[1]}): {error}")
    version = metadata.version(engine.package) if engine.package else None
    print(strict_json.dumps({"version": version}), file=answer, flush=True)
    for line in sys.stdin:
        request = strict_json.loads(line)
        start = time.perf_counter()
        vectors = encode(request["texts"])
        seconds = time.perf_counter() - start
        np.save(request["save"], vectors)
        result = {"seconds": seconds, "peak_mb": peak_megabytes() if engine.package else None}
        print(strict_json.dumps(result), file=answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
