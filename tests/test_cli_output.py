"""What commands print reaches its reader whole, or one line says why: any terminal, any other end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COMMAND = f"{sys.executable} -m mlx_embeddinggemma"
TEXT = "naïve 猫 👩‍👧 “quoted”"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    (folder / os.fsdecode(b"odd\xff\n.md")).write_text(
        f"# {TEXT}\n\n{TEXT} \x1b[2J end", encoding="utf-8"
    )
    (folder / "binary.txt").write_bytes(b"\0")
    (folder / "a.csv").write_text("text\na\n")
    return folder


def shell(command, cwd, **environment):
    """A command as a shell runs it, buffered as Python does by itself."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG"))}
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        cwd=cwd,
        env=clean | {"MLX_ENABLE_TF32": "0"} | environment,
    )


TERMINALS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "the C locale": {"LC_ALL": "C"},
    "the C locale, no UTF-8 mode": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}


@pytest.mark.parametrize("terminal", TERMINALS)
def test_any_terminal_shows_hits(folder, terminal):
    search = f"{COMMAND} search {TEXT.split()[0]} . --model demo"
    done = shell(search, folder, **TERMINALS[terminal])
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert rb"odd\udcff\n.md:3" in done.stdout and rb"\x1b[2J end" in done.stdout
    assert b"\x1b" not in done.stdout
    [hit] = json.loads(shell(f"{search} --json", folder, **TERMINALS[terminal]).stdout)
    assert os.fsencode(hit["file"]) == b"odd\xff\n.md"
    assert (hit["title"], hit["text"]) == (TEXT, f"{TEXT} \x1b[2J end")


def test_json_lines_of_vectors_are_utf8_everywhere(folder):
    done = shell(f"{COMMAND} embed $'odd\\xff' {TEXT.split()[1]} --model demo", folder, LC_ALL="C")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["odd\udcff", "猫"] and done.returncode == 0


@pytest.mark.parametrize(
    ("command", "status", "stderr"),
    [
        ("embed a --model demo >&-", 1, "Bad file descriptor"),
        ("embed a --model demo >/dev/full", 1, "No space left on device"),
        ("search x . --model demo --json >/dev/full", 1, "No space left on device"),
        ("--help >/dev/full", 1, "No space left on device"),
        ("embed --input - --model demo <&-", 1, "Bad file descriptor"),
        ("embed a --model demo | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("embed a b c --model demo | head -c 5; exit ${PIPESTATUS[0]}", 0, ""),
        ("search x . --model demo 2>/dev/full | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("verify demo | head -n 1; exit ${PIPESTATUS[0]}", 0, ""),
        ("convert --list | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("--help | true; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing_costs_one_line_at_most(folder, command, status, stderr):
    done = shell(f"{COMMAND} {command}", folder)
    told = [line for line in done.stderr.decode().splitlines() if "warning: " not in line]
    assert done.returncode == status
    assert len(told) == bool(stderr) and all(stderr in line for line in told)


@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "2> >(true)"])
def test_a_file_is_written_whatever_the_streams(folder, tmp_path, streams):
    command = f"{COMMAND} embed --input a.csv --model demo --output {tmp_path}/v.npy {streams}"
    done = shell(command, folder)  # says on standard error which column it reads
    assert done.returncode == 0 and np.load(tmp_path / "v.npy").shape == (1, 768)
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_skipped_files_are_told_on_a_terminal_that_is_ascii(folder):
    done = shell(f"{COMMAND} search x . --model demo", folder, PYTHONIOENCODING="ascii")
    assert done.stderr.decode().splitlines() == [
        "mlx-embeddinggemma: warning: skipped: binary.txt is binary, not text",
        "mlx-embeddinggemma: warning: 1 file or folder was skipped, 1 read",
    ]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder.npy", "cannot write folder.npy: it is a folder"),
        ("pipe.jsonl", "cannot write pipe.jsonl: it is no file that may be replaced"),
        ("nowhere/v.npy", "cannot write nowhere/v.npy: No such file or directory"),
        ("/proc/v.npy", "cannot write /proc/v.npy: "),
        ("v.txt", "expected --output FILE.npy, FILE.jsonl, FILE.parquet or -, got v.txt"),
        ("~/none/v.npy", "cannot write ~/none/v.npy: "),
        (f"{'x' * 300}.npy", "File name too long"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_any_work(tmp_path, output, message):
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    # A model that does not exist: it would be told first, were it looked for first.
    done = shell(f"{COMMAND} embed a --model ./none --output={output}", tmp_path)
    assert done.returncode == 1 and message in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_a_link_stays_and_its_file_is_written(folder, tmp_path):
    (tmp_path / "link.npy").symlink_to("v.npy")
    shell(f"{COMMAND} embed a --model demo --output {tmp_path}/link.npy", folder)
    assert (tmp_path / "link.npy").is_symlink() and np.load(tmp_path / "v.npy").shape == (1, 768)


def test_embed_reads_a_table_and_says_which_column(tmp_path):
    (tmp_path / "a.csv").write_bytes("id;Wörter\n1;für\n2;Bäcker\n".encode("cp1252"))
    done = shell(f"{COMMAND} embed --input a.csv --model demo", tmp_path)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["für", "Bäcker"]
    assert done.stderr.decode().splitlines() == [
        "mlx-embeddinggemma: warning: a.csv is not UTF-8: read as cp1252",
        "mlx-embeddinggemma: warning: a.csv: the texts are those of the column Wörter",
    ]
    done = shell(f"{COMMAND} embed --input a.csv --column id --model demo --output=v.npy", tmp_path)
    assert np.load(tmp_path / "v.npy").shape == (2, 768)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a --column text", "--column is of a table"),
        ("--input - --column text", "--column is of a table"),
        ("--input a.txt --column text", "--column is of a table"),
        ("--input a.bin", "a.bin is binary, not text"),
        ("--input .", "Is a directory"),
        ("--input ~nosuchuser/a.txt", "input: there is no such user"),
    ],
)
def test_what_cannot_be_an_input_is_one_line(tmp_path, arguments, message):
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    done = shell(f"{COMMAND} embed {arguments} --model demo", tmp_path)
    assert done.returncode == 1 and message in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_output_goes_where_a_notebook_puts_it(capsys, monkeypatch):
    """A stream of text without bytes behind it, as in Jupyter."""
    import io
    import sys

    from mlx_embeddinggemma.cli import main

    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert main(["embed", "ein Stück 🎉", "--model", "demo"]) == 0
    row = json.loads(shown.getvalue())
    assert row["text"] == "ein Stück 🎉" and len(row["embedding"]) == 768
