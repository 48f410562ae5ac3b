"""What a type checker says about code that calls the encoder."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CODE = """
from collections.abc import Iterator
from typing import Any, assert_type

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import EmbeddingGemma

Vector = np.ndarray[tuple[int], np.dtype[Any]]
Matrix = np.ndarray[tuple[int, int], np.dtype[Any]]


def texts() -> Iterator[str]:
    yield "a"


def use(model: EmbeddingGemma) -> None:
    assert_type(model.encode("a"), Vector)
    assert_type(model.encode(["a"]), Matrix)
    assert_type(model.encode(texts(), batch_size=2, precision="ubinary"), Matrix)
    assert_type(model.encode_query("a", truncate_dim=256), Vector)
    assert_type(model.encode_query(("a", "b"), prompt_name="STS"), Matrix)
    assert_type(model.encode_document("a", titles="b"), Vector)
    assert_type(model.encode_document(["a"], titles=["b", None]), Matrix)
    assert_type(model.encode("a", return_mlx=True), mx.array)
    assert_type(model.encode_query(["a"], return_mlx=True), mx.array)
    assert_type(model.encode("a", output_value="token_embeddings"), Matrix)
    assert_type(model.encode(["a"], output_value="token_embeddings"), list[Matrix])
    assert_type(model.similarity(model.encode("a"), model.encode(["b"])), Matrix)
    assert_type(model.tokenize("a"), list[int])
    assert_type(model.tokenize(["a"]), list[list[int]])
    assert_type(model.count_tokens("a"), int)
    assert_type(model.count_tokens(texts()), list[int])
    assert_type(model.get_embedding_dimension(), int)
    assert_type(model.max_seq_length, int)
    assert_type(model.device, str)
    model.max_seq_length = 256
    model.similarity_fn_name = "dot"
    model.encode("a", sentences="b")
    model.encode_query(inputs=["a"], convert_to_numpy=False)
"""
WRONG = """
from mlx_embeddinggemma import EmbeddingGemma


def use(model: EmbeddingGemma) -> None:
    model.encode(["a"], batchsize=2)
    model.encode_query(3)
    model.encode_document(["a"], titles=[3])
    model.encode(["a"], precision="int4")
    model.encode(["a"], batch_size="2")
"""


def check(code: str, path) -> subprocess.CompletedProcess:
    pytest.importorskip("mypy", reason="needs the extra `dev`")
    (path / "use.py").write_text(code)
    # numpy's and MLX's own stubs are the environment's; torch's would take a minute to read.
    (path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\nignore_missing_imports = True\n"
        "[mypy-mlx.nn.*]\nfollow_imports = skip\n"
        "[mypy-mlx_embeddinggemma.*]\nfollow_imports = silent\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "use.py"]
    env = {"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(path)}
    return subprocess.run(command, cwd=path, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_string_gives_a_vector_and_an_iterable_a_matrix(tmp_path):
    done = check(CODE, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_wrong_is_seen_before_it_runs(tmp_path):
    done = check(WRONG, tmp_path)
    lines = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    assert sorted(set(lines)) == [6, 7, 8, 9, 10], done.stdout
