"""The commands, run as a person runs them: results, files, exit statuses, one line on a mistake."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma


def run(*args, input=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "mlx_embeddinggemma", *map(str, args)],
        input=input,
        capture_output=True,
        text=isinstance(input, str) or input is None,
        **options,
    )


@pytest.fixture(scope="module")
def model(demo):
    return EmbeddingGemma(demo)


def test_help_takes_less_than_200_ms():
    def seconds() -> float:
        start = time.perf_counter()
        assert "embed" in run("--help").stdout
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.2


@pytest.mark.parametrize("command", ["embed", "search", "convert", "bench", "verify"])
def test_every_command_has_help(command):
    done = run(command, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: mlx-embeddinggemma")


@pytest.mark.parametrize("args", [(), ("nonsense",), ("embed", "x", "--dim", "many"), ("search",)])
def test_wrong_usage_exits_with_2(args):
    done = run(*args)
    assert done.returncode == 2 and done.stdout == "" and "usage:" in done.stderr


def failure(*args, **options) -> str:
    """Standard error of a command that fails: one line, no traceback."""
    done = run(*args, **options)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("mlx-embeddinggemma: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_embed_prints_json_lines(model):
    done = run("embed", "one text", "another", "--model", "demo", "--prompt", "query", "--dim", 256)
    assert done.returncode == 0 and done.stderr == ""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["one text", "another"]
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    assert (vectors == model.encode_query(["one text", "another"], truncate_dim=256)).all()


@pytest.mark.parametrize("kind", ["npy", "jsonl", "parquet"])
def test_embed_writes_a_file(model, tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    texts = ["first line", "", "third, with ünïcode", "first line"]
    source, target = tmp_path / "in.txt", tmp_path / f"out.{kind}"
    source.write_text("\n".join(texts) + "\n", encoding="utf-8")
    done = run("embed", "--input", source, "--model", "demo", "--output", target)
    assert done.returncode == 0 and done.stdout == ""
    if kind == "npy":
        vectors = np.load(target)
    elif kind == "jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        assert [row["text"] for row in rows] == texts
        vectors = np.array([row["embedding"] for row in rows], np.float32)
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(target)
        assert table["text"].to_pylist() == texts
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert (vectors == model.encode(texts)).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", f"out.{kind}"]


def test_embed_reads_standard_input(model, tmp_path):
    target = tmp_path / "out.npy"
    many = [f"line number {i % 50}" for i in range(5000)]  # more than a chunk
    done = run("embed", "--input", "-", "--model", "demo", "--output", target, input="\n".join(many))
    assert done.returncode == 0
    vectors = np.load(target, mmap_mode="r")
    assert vectors.shape == (5000, 768)
    assert_near(vectors[4980:4990], vectors[30:40])
    assert_near(vectors[:3], model.encode(many[:3]))


def test_embed_mistakes(tmp_path):
    assert "one of them" in failure("embed", "--model", "demo")
    assert "one of them" in failure("embed", "x", "--input", "y", "--model", "demo")
    assert "expected --output FILE.npy" in failure("embed", "x", "--output", "out.csv")
    assert "No such file" in failure("embed", "--input", tmp_path / "none", "--model", "demo")
    assert "known prompts:" in failure("embed", "x", "--model", "demo", "--prompt", "nope")
    assert "768, 512, 256, 128" in failure("embed", "x", "--model", "demo", "--dim", "100")
    assert "no folder" in failure("embed", "x", "--model", "./nowhere")
    target = tmp_path / "missing" / "out.npy"
    assert "No such file or directory" in failure("embed", "x", "--model", "demo", "--output", target)


def test_embed_of_a_file_that_is_not_text_names_the_line_and_leaves_nothing(tmp_path):
    source, target = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_bytes("fünf süße Wörter\n".encode() + b"\xff\xfe\n")
    message = failure("embed", "--input", source, "--model", "demo", "--output", target)
    assert "line 2: expected UTF-8 text, got the byte 0xff" in message
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_broken_pipe_is_silent():
    command = f"{sys.executable} -m mlx_embeddinggemma embed a b c --model demo | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_stops_with_one_line_and_leaves_nothing(tmp_path):
    target = tmp_path / "out.npy"
    command = [sys.executable, "-m", "mlx_embeddinggemma", "embed", "--input", "-"]
    process = subprocess.Popen(
        [*command, "--model", "demo", "--output", str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(
        "".join(f"a long line of text {i} {'word ' * 200}\n" for i in range(2048)).encode()
    )
    process.stdin.flush()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.decode().strip().splitlines()[-1] == "mlx-embeddinggemma: interrupted"
    assert b"Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "library"
    (folder / "sub").mkdir(parents=True)
    (folder / "animals.md").write_text(
        "# Animals\n\nIntroduction.\n\n## Cats\nA cat sleeps most of the day.\n\n"
        "## Horses\n\nHorses run fast and eat grass.\n"
    )
    (folder / "sub" / "cooking.txt").write_text("Boil the pasta in salted water.\n\nChop the onions.")
    (folder / ".hidden.md").write_text("A secret about cats.")
    (folder / "image.png").write_bytes(b"\x89PNG")
    return folder


def test_an_empty_file_gives_an_array_of_no_vectors(tmp_path):
    (tmp_path / "empty.txt").touch()
    out = tmp_path / "v.npy"
    run("embed", "--input", tmp_path / "empty.txt", "--model", "demo", "--dim", 128, "--output", out)
    assert np.load(out).shape == (0, 128)


def test_search_finds_the_passage_with_its_file_line_and_title(library):
    done = run("search", "sleepy kitten", library, "--model", "demo", "--top-k", 2, "--json")
    hits = json.loads(done.stdout)
    assert len(hits) == 2
    assert hits[0]["file"].endswith("animals.md")
    assert (hits[0]["line"], hits[0]["title"]) == (6, "Cats")
    assert hits[0]["text"] == "A cat sleeps most of the day."
    assert hits[0]["score"] > hits[1]["score"]


def test_search_prints_ranked_passages(library):
    done = run("search", "how long to cook noodles", library, "--model", "demo", "--dim", 128)
    assert done.returncode == 0 and done.stderr == ""
    first = done.stdout.splitlines()[0]
    assert "cooking.txt:1" in first and "secret" not in done.stdout
    assert float(first.split()[0]) <= 1


def test_search_loses_no_text(tmp_path):
    """A long line is split into passages; its end is found."""
    path = tmp_path / "long.txt"
    path.write_text("Filler words about nothing. " * 2000 + "The treasure is under the old oak tree.")
    done = run("search", "where is the treasure", path, "--model", "demo", "--top-k", 1)
    assert "treasure" in done.stdout and done.stderr == ""


def test_search_mistakes(tmp_path):
    assert "no file or folder" in failure("search", "x", tmp_path / "none", "--model", "demo")
    assert "no text in" in failure("search", "x", tmp_path, "--model", "demo")
    assert "expected a query" in failure("search", " ", tmp_path, "--model", "demo")
    assert "expected top_k from 1" in failure("search", "x", tmp_path, "--top-k", "0")


def test_verify_checks_what_it_can_on_the_demo():
    done = run("verify", "demo")
    assert done.returncode == 0, done.stdout
    assert "only for google/embeddinggemma-300m" in done.stdout
    assert "0 failed" in done.stdout
    checks = json.loads(run("verify", "demo", "--json").stdout)
    passed = {check["name"] for check in checks if check["passed"]}
    assert {"alone = in a batch", "unit length", "both directions"} <= passed


def test_python_m_and_the_script_are_the_same():
    script = os.path.join(os.path.dirname(sys.executable), "mlx-embeddinggemma")
    if not os.path.exists(script):
        pytest.skip("the package is not installed with its script")
    version = subprocess.run([script, "--version"], capture_output=True, text=True).stdout
    assert version == run("--version").stdout != ""
