"""`search` over folders as people have them: what cannot be read is told, the rest is searched."""

import os
import socket
import warnings
from pathlib import Path

import pytest

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.search import _passages, _read, search


def read(*paths):
    """The files and texts that are found, and what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        passages = _read(paths)
    return {Path(p.file).name: p.text for p in passages}, [str(w.message) for w in told]


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 107 characters at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def forbidden(path: Path) -> None:
    path.write_text("secret")
    path.chmod(0)


def forbidden_folder(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_text("secret")
    path.chmod(0)


UNREADABLE = {
    "binary.txt": (lambda path: path.write_bytes(b"\0\1\2" * 9), "binary.txt is binary, not text"),
    "a.pdf.txt": (lambda path: path.write_bytes(b"%PDF-1.4 ..."), "a.pdf.txt is a PDF"),
    "half.md": (lambda path: path.write_bytes(b"\xff\xfeabc"), "half.md is not whole utf-16 text"),
    "broken.md": (broken_link, "broken.md: No such file or directory"),
    "loop.md": (loop, "loop.md: Too many levels"),
    "pipe.txt": (os.mkfifo, "pipe.txt is no file that can be read"),
    "socket.txt": (unix_socket, "socket.txt is no file that can be read"),
    "zero.txt": (lambda path: path.symlink_to("/dev/zero"), "zero.txt is no file that can be read"),
    "forbidden.txt": (forbidden, "forbidden.txt: Permission denied"),
    "shut": (forbidden_folder, "shut is no file that can be read"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_told_and_the_rest_is_searched(tmp_path, name):
    make, reason = UNREADABLE[name]
    if "forbidden" in make.__name__ and os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "good.md").write_text("Cats sleep.")
    make(tmp_path / name)
    found, told = read(tmp_path)
    assert found == {"good.md": "Cats sleep."}
    assert len(told) == 2 and told[0].startswith("skipped: ") and reason in told[0]
    assert told[1] == "1 file or folder was skipped, 1 read"


def test_a_file_that_is_named_is_skipped_as_one_that_is_found(tmp_path):
    """A shell's `*` names the pictures too."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "a.txt").write_text("Cats sleep.")
    found, told = read(tmp_path / "a.png", tmp_path / "a.txt")
    assert found == {"a.txt": "Cats sleep."} and "a.png is binary" in told[0]


def test_a_file_that_vanishes_is_skipped(tmp_path, monkeypatch):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    real = os.stat

    def stat(path, *args, **kwargs):
        found = real(path, *args, **kwargs)
        if str(path).endswith("a.txt"):
            os.unlink(path)
        return found

    monkeypatch.setattr(os, "stat", stat)
    found, told = read(tmp_path)
    assert found == {"b.txt": "b.txt"} and "a.txt: No such file" in told[0]


def test_other_encodings_are_searched(tmp_path):
    (tmp_path / "wide.txt").write_text("Horses é run\r\nfast", encoding="utf-16")
    (tmp_path / "old.txt").write_bytes("Ein Café in Köln".encode("cp1252"))
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf# Not a title only\nText")
    found, told = read(tmp_path)
    assert found == {
        "wide.txt": "Horses é run\nfast",
        "old.txt": "Ein Café in Köln",
        "marked.txt": "Text",
    }
    assert len(told) == 1 and told[0].endswith("old.txt is not UTF-8: read as cp1252")


def test_a_file_is_read_once_whatever_it_is_called(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    file = folder / "a.md"
    file.write_text("Cats sleep.")
    (folder / "link.md").symlink_to("a.md")
    os.link(file, folder / "sub" / "hard.md")
    (folder / "sub" / "up").symlink_to("..")
    (tmp_path / "other").symlink_to("folder")
    (folder / "gone.md").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    named = ["folder", "./folder/a.md", file, "other", "folder/../folder", folder / "link.md"]
    with warnings.catch_warnings(record=True, action="always") as told:
        assert [passage.text for passage in _read(named)] == ["Cats sleep."]
    assert str(told[-1].message) == "1 file or folder was skipped, 1 read"


def test_lines_are_those_of_grep():
    text = "one\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029still one\n\n# Two\n\nfive\n" + "x" * 900
    passages = list(_passages(Path("a.md"), text))
    assert [(p.line, p.title) for p in passages][:2] == [(1, "a"), (5, "Two")]


def test_a_heading_of_nothing_keeps_the_title_above():
    passages = list(
        _passages(Path("notes.md"), "# \n\nfirst\n\n# Named\n\n##\n\nsecond\n\n#\t \n\nthird")
    )
    assert [(p.title, p.text) for p in passages] == [
        ("notes", "first"),
        ("Named", "second"),
        ("Named", "third"),
    ]


def test_names_of_any_bytes_are_searched(tmp_path):
    for name in (b"odd\xff.md", b"new\nline.md", "猫.md".encode()):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_text("text")
    found, told = read(tmp_path)
    assert {os.fsencode(name) for name in found} == {b"odd\xff.md", b"new\nline.md", "猫.md".encode()}
    assert told == []


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(tmp_path, query):
    with pytest.raises(EmbeddingGemmaError, match="expected a query"):
        search(query, [tmp_path], model="demo")


def test_nothing_to_search_says_what_is_searched(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_text("text")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(EmbeddingGemmaError, match=r"no text in .*; of folders .markdown, .md, "):
        search("x", [tmp_path], model="demo")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EmbeddingGemmaError, match="got an empty name"):
        search("x", [""], model="demo")
    with pytest.raises(EmbeddingGemmaError, match="no file or folder .*/none"):
        search("x", ["~/none"], model="demo")
