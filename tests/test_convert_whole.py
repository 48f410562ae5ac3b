"""Whole or absent: whatever ends a conversion, the output is as it was and one line says why."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import faults
import pytest
from mlx_embeddinggemma.convert import conversion, convert

from mlx_embeddinggemma import EmbeddingGemmaError

SIZES = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "head_dim": 64}
SIZES |= {"num_attention_heads": 1, "query_pre_attn_scalar": 64, "dense": (64, 64)}


@pytest.fixture
def source(tmp_path) -> Path:
    return checkpoints.write_tiny(tmp_path / "source", **SIZES)


@pytest.fixture(autouse=True)
def short_sample(monkeypatch):
    sample = [f"sample text number {i} of twelve" for i in range(12)]
    monkeypatch.setattr(conversion, "SAMPLE", sample)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(source: Path, output: Path, says: str, **flags: object) -> None:
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        convert(source, output, recipe="bf16", **flags)
    assert "\n" not in str(caught.value)


# the target


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("source/config.json/out", "cannot write .*out: (Not a directory|File exists)"),
        ("source/config.json", "exists|is a file"),
        ("x" * 300, "File name too long"),
        (f"{'x' * 300}/out", "File name too long"),
    ],
    ids=["parent a file", "a file", "name too long", "parent too long"],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_target_that_cannot_be_written_is_one_line(output, says, force, source, tmp_path):
    before = contents(tmp_path)
    refused(source, tmp_path / output, says, force=force)
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_folder_without_permission_is_one_line(source, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o555)
    refused(source, tmp_path / "mine" / "out", "cannot write .*Permission denied")


def test_where_the_system_says_read_only_the_answer_is_one_line(source, tmp_path, monkeypatch):
    def mkdir(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused(source, tmp_path / "out", "cannot write .*out: Read-only file system")


@pytest.mark.skipif(sys.platform != "linux", reason="counts on a Linux file system that swaps names")
def test_an_old_folder_gives_way_in_one_step(source, tmp_path, monkeypatch):
    convert(source, tmp_path / "out", recipe="fp32")

    def replace(old: Path, new: Path) -> None:
        raise AssertionError(f"{old} to {new}: a kill after it would leave nothing in its place")

    monkeypatch.setattr("os.replace", replace)
    convert(source, tmp_path / "out", recipe="bf16", force=True)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["recipe"]["name"] == "bf16"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize("times", [0, 1])
def test_an_old_folder_stays_when_the_new_one_cannot_be_moved_to_its_place(
    times, source, tmp_path, monkeypatch
):
    convert(source, tmp_path / "out", recipe="fp32")
    before = contents(tmp_path)
    # As where the file system cannot swap two folders.
    monkeypatch.setattr("mlx_embeddinggemma.folders._exchange", lambda one, other: False)
    real, calls = os.replace, []

    def replace(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == times + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(old, new)

    monkeypatch.setattr("os.replace", replace)
    refused(source, tmp_path / "out", "writing .*out failed: Input/output error", force=True)
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("force", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize(
    "file",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "conversion.json",
     "README.md"],
)  # fmt: skip
def test_a_disk_that_fills_while_a_file_is_written_leaves_all_as_it_was(
    file, force, source, tmp_path, monkeypatch
):
    if force:
        convert(source, tmp_path / "out", recipe="fp32")
    before = contents(tmp_path)
    faults.disk_fills_at(file, monkeypatch)
    refused(source, tmp_path / "out", "writing .*out failed: No space left on device$", force=force)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", *(["out"] if force else [])}


# the source


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def flip_unseen(path: Path) -> None:
    """Another file of the same size and time in its place."""
    stat, other = path.stat(), path.with_name("other")
    shutil.copy2(path, other)
    flip(other)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


CHANGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights rewritten": ("model.safetensors", flip, "changed while it was read"),
    "weights replaced": ("model.safetensors", flip_unseen, "source changed while it was read"),
    "head rewritten": ("3_Dense/model.safetensors", flip, "changed while it was read"),
    "weights cut short": ("model.safetensors", cut, "model.safetensors changed while it was read"),
    "weights gone": ("model.safetensors", Path.unlink, "cannot read .*model.safetensors: No such"),
    "head gone": ("3_Dense/model.safetensors", Path.unlink, "cannot read .*model.safetensors: No such"),
    "config rewritten": ("config.json", flip, "source changed while it was read"),
    "tokenizer gone": ("tokenizer.json", Path.unlink, "No such file .*source/tokenizer.json"),
    "prompts gone": ("config_sentence_transformers.json", Path.unlink, "No such file .*/config_sen"),
}


ANY = "changed while it was read|became shorter|cannot read|No such file"


@pytest.mark.parametrize("moment", ["plan", "_write_tokenizer", "embed"])
@pytest.mark.parametrize("case", CHANGES)
def test_a_source_that_changes_while_it_is_read_is_noticed(case, moment, source, tmp_path, monkeypatch):
    file, change, says = CHANGES[case]
    real, done = getattr(conversion, moment), []

    def change_first(*args: object) -> object:
        if not done:
            done.append(case)
            change(source / file)
        return real(*args)

    monkeypatch.setattr(conversion, moment, change_first)
    # Later on, the weights may have been read already: then the change is noticed at the end.
    refused(source, tmp_path / "out", says if moment == "plan" else ANY)
    assert done and [path.name for path in tmp_path.iterdir()] == ["source"]


def linked(source: Path) -> Path:
    """As in a hub's cache: the folder holds links to files elsewhere."""
    elsewhere = source.with_name("blobs")
    source.rename(elsewhere)
    source.mkdir()
    for path in elsewhere.rglob("*"):
        link = source / path.relative_to(elsewhere)
        if path.is_file():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
    return source


def other_name(source: Path) -> Path:
    (source.parent / "other").symlink_to(source)
    return source.parent / "other"


OUTPUTS: dict[str, Callable[[Path], Path]] = {
    "itself": lambda source: source,
    "its parent": lambda source: source.parent,
    "a folder of it": lambda source: source / "2_Dense",
    "by another name": other_name,
    "by dots": lambda source: source / "2_Dense" / "..",
    "a folder of links": linked,
    "where the links lead": lambda source: linked(source).with_name("blobs"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_source_is_never_its_own_output(case, source, tmp_path):
    output = OUTPUTS[case](source)
    before = contents(tmp_path)
    refused(source, output, "holds the source: choose another", force=True)
    assert contents(tmp_path) == before


def test_a_folder_that_exists_is_found_before_any_work_is_done(source, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(conversion, "tune", None)
    with pytest.raises(EmbeddingGemmaError, match="out exists"):
        convert(source, tmp_path / "out", recipe="4bit-tuned")


def test_a_new_folder_has_the_permissions_of_any_and_the_umask_is_never_touched(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr("os.umask", lambda _: pytest.fail("other threads' files would get it"))
    convert(source, tmp_path / "out", recipe="fp32")
    (tmp_path / "other").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode
