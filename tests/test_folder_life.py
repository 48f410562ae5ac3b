"""The folder under a running encoder: touched, copied over, moved, replaced, half there."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from mlx_embeddinggemma.convert import convert

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError, hub, watched

CLOSE = 2e-6
FIRST, SECOND = ["the thin thing", "a"], ["another text altogether: Q?", "the thin thing"]
LAYOUTS = ["floats", "packed"]


@pytest.fixture(params=LAYOUTS)
def folder(request, tiny, tmp_path) -> Path:
    """One whose table alone is read again, and one whose matrices are, for each batch."""
    if request.param == "floats":
        return Path(shutil.copytree(tiny, tmp_path / "m"))
    return checkpoints.as_mlx_community(tiny, tmp_path / "m", bits=4)


def touched(path: Path) -> None:
    os.utime(path)


def dated_back(path: Path) -> None:
    os.utime(path, (0, 0))


def written_again(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def replaced_by_a_copy(path: Path) -> None:
    """As `git checkout`, `rsync` and editors do."""
    shutil.copyfile(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def removed_and_copied_back(path: Path) -> None:
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw)


def linked_elsewhere(path: Path) -> None:
    """As `hf download` does once it has moved a file into its cache."""
    blob = path.with_name("blob")
    path.rename(blob)
    path.symlink_to(blob)


def its_mode_changed(path: Path) -> None:
    path.chmod(0o400)


def hard_linked(path: Path) -> None:
    os.link(path, path.with_name("link"))


SAME = [
    touched,
    dated_back,
    written_again,
    replaced_by_a_copy,
    removed_and_copied_back,
    linked_elsewhere,
    its_mode_changed,
    hard_linked,
]


@pytest.mark.parametrize("change", SAME)
def test_a_file_with_the_same_bytes_ends_nothing(change, folder, tiny, tmp_path):
    model, expected = EmbeddingGemma(folder), EmbeddingGemma(folder)
    first, second = expected.encode(FIRST), expected.encode(SECOND)
    assert np.abs(model.encode(FIRST) - first).max() <= CLOSE
    for _ in range(2):
        change(folder / "model.safetensors")
        assert np.abs(model.encode(SECOND) - second).max() <= CLOSE
        for extra in ("copy", "blob", "link"):
            if change is not linked_elsewhere:
                (folder / extra).unlink(missing_ok=True)
        if change is linked_elsewhere:
            break
    model.save_pretrained(tmp_path / "saved")
    assert np.abs(EmbeddingGemma(tmp_path / "saved").encode(FIRST) - first).max() <= CLOSE


def test_what_was_read_is_compared_once_for_each_touch(folder, monkeypatch):
    model = EmbeddingGemma(folder)
    model.encode(FIRST)
    compared: list[int] = []
    real = watched._checksum
    monkeypatch.setattr(watched, "_checksum", lambda *a: compared.append(a[2]) or real(*a))
    touched(folder / "model.safetensors")
    model.encode(SECOND)
    done = len(compared)
    assert done > 2
    model.encode(FIRST)
    assert len(compared) == done


def in_place(path: Path, raw: bytes) -> None:
    """The same file, size and time: only the file system's own clock tells."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def by_another(path: Path, raw: bytes) -> None:
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(raw)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def through_a_link(path: Path, raw: bytes) -> None:
    blob = path.with_name("blob")
    blob.write_bytes(raw)
    path.unlink()
    path.symlink_to(blob)


def place_of(path: Path, name: str, row: int = 0) -> int:
    """Where a tensor's row begins in its file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    entry = header[name if name in header else f"model.{name}"]
    begin, end = entry["data_offsets"]
    return 8 + length + begin + row * ((end - begin) // entry["shape"][0])


# The table's row of bos is in every text; the others are read when the model is loaded.
PLACES = {
    "a row of the table that was read": lambda path: place_of(path, "embed_tokens.weight", 2) + 1,
    "a norm": lambda path: place_of(path, "norm.weight") + 3,
    "the first matrix": lambda path: place_of(path, "layers.0.self_attn.q_proj.weight") + 1,
    "the last byte of a matrix": lambda path: place_of(path, "layers.5.mlp.up_proj.weight", 255) + 5,
    "the header": lambda path: 20,
}


@pytest.mark.parametrize("replace", [in_place, by_another, through_a_link])
@pytest.mark.parametrize("place", PLACES)
def test_one_changed_byte_of_what_was_read_ends_the_encoder(place, replace, folder, tmp_path):
    path = folder / "model.safetensors"
    model = EmbeddingGemma(folder)
    model.encode(FIRST)
    raw = bytearray(path.read_bytes())
    raw[PLACES[place](path)] ^= 1
    replace(path, bytes(raw))
    for _ in range(2):
        with pytest.raises(
            EmbeddingGemmaError, match=r"changed while it was read: start again \(bytes .* not what"
        ):
            model.encode(SECOND)
    with pytest.raises(EmbeddingGemmaError, match="changed while it was read"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_another_checkpoint_in_its_place_ends_the_encoder(folder, tmp_path):
    model = EmbeddingGemma(folder)
    another = checkpoints.write_tiny(tmp_path / "another", seed=1)
    if "quantization" in json.loads((folder / "config.json").read_text()):
        another = checkpoints.as_mlx_community(another, tmp_path / "packed", bits=4)
    shutil.copyfile(another / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(EmbeddingGemmaError, match="changed while it was read: start again"):
        model.encode(FIRST)


GONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "shorter": (lambda path: os.truncate(path, 4000), r"it had .* bytes and has 4,000"),
    "longer": (lambda path: os.truncate(path, path.stat().st_size + 1), r"it had .* bytes and has"),
    "empty": (lambda path: path.write_bytes(b""), r"it had .* bytes and has 0"),
    "gone": (Path.unlink, r"cannot read .*model.safetensors: No such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"cannot read|changed while it was read"),
    "the whole folder gone": (lambda path: shutil.rmtree(path.parent), r"cannot read .*No such file"),
}


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("name", GONE)
def test_a_file_cut_or_gone_is_one_line(name, folder, tmp_path):
    model = EmbeddingGemma(folder)
    model.encode(FIRST)
    change, message = GONE[name]
    change(folder / "model.safetensors")
    with pytest.raises(EmbeddingGemmaError, match=message):
        model.encode(SECOND)
    with pytest.raises(EmbeddingGemmaError, match=message):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "modules.json", "3_Dense/config.json"]
)
def test_a_copy_is_of_what_was_loaded_or_not_at_all(name, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    model = EmbeddingGemma(folder)
    touched(folder / name)
    model.save_pretrained(tmp_path / "saved")
    (folder / name).write_bytes((folder / name).read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(EmbeddingGemmaError, match=f"{name} changed while it was read"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("spelling", ["m", "./m", "../{parent}/m", "link"])
def test_a_relative_folder_is_found_after_chdir(spelling, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    monkeypatch.chdir(tmp_path)
    model = EmbeddingGemma(spelling.format(parent=tmp_path.name))
    expected = EmbeddingGemma(tiny).encode(FIRST)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "link").unlink()
    assert np.abs(model.encode(FIRST) - expected).max() <= CLOSE
    model.save_pretrained("saved")
    assert np.abs(EmbeddingGemma("saved").encode(FIRST) - expected).max() <= CLOSE


def test_shards_and_dense_folders_may_be_called_anything(tiny, tmp_path):
    folder = checkpoints.shard(tiny, tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-0000", "part "))
    for path in folder.glob("model-0000*"):
        path.rename(folder / path.name.replace("model-0000", "part "))
    modules = folder / "modules.json"
    modules.write_text(modules.read_text().replace("2_Dense", "heads/up").replace("3_Dense", "down"))
    (folder / "heads").mkdir()
    (folder / "2_Dense").rename(folder / "heads" / "up")
    (folder / "3_Dense").rename(folder / "down")
    model = EmbeddingGemma(folder)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)
    difference = EmbeddingGemma(tmp_path / "saved").encode(FIRST) - EmbeddingGemma(tiny).encode(FIRST)
    assert np.abs(difference).max() <= CLOSE
    report = convert(tmp_path / "saved", tmp_path / "converted", recipe="fp32")
    assert {"heads/up/model.safetensors", "down/config.json"} <= report.inputs.keys()


# The hub


def snapshot(tiny: Path, cache: Path) -> Path:
    """As a hub's cache keeps it: links to blobs."""
    repository = cache / "models--google--embeddinggemma-300m"
    shutil.copytree(tiny, repository / "blobs")
    folder = repository / "snapshots" / ("0" * 40)
    for path in (repository / "blobs").rglob("*"):
        if path.is_file():
            link = folder / path.relative_to(repository / "blobs")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return folder


HALF = ["config.json", "model.safetensors", "2_Dense/model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("how", ["by name", "by folder"])
@pytest.mark.parametrize("missing", [*HALF, "blobs/model.safetensors"])
def test_a_download_that_did_not_end_names_the_command(missing, how, tiny, tmp_path, monkeypatch):
    folder = snapshot(tiny, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    blob = missing.startswith("blobs/")
    (folder.parent.parent / missing if blob else folder / missing).unlink()
    model = "google/embeddinggemma-300m" if how == "by name" else folder
    loads = [EmbeddingGemma, lambda *a, **b: convert(*a, tmp_path / "out", dry_run=True, **b)]
    for load in loads[:1] if missing == "tokenizer.json" else loads:  # which a dry run does not read
        with pytest.raises(
            EmbeddingGemmaError, match="run `hf download google/embeddinggemma-300m`"
        ) as caught:
            load(model, local_files_only=True)
        assert Path(missing).name in str(caught.value)


def test_weights_of_another_name_are_downloaded_too(tiny, tmp_path, monkeypatch):
    import huggingface_hub

    source = checkpoints.shard(tiny, tmp_path / "m")
    modules = source / "modules.json"
    modules.write_text(modules.read_text().replace("3_Dense", "last"))
    (source / "3_Dense").rename(source / "last")
    index = source / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-0000", "part-"))
    for path in source.glob("model-0000*"):
        path.rename(source / path.name.replace("model-0000", "part-"))

    def snapshot_download(name, allow_patterns, **_):
        names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    difference = EmbeddingGemma("some/one").encode(FIRST) - EmbeddingGemma(tiny).encode(FIRST)
    assert np.abs(difference).max() <= CLOSE


# A folder called demo


@pytest.mark.parametrize("name", ["demo", Path("demo"), "./demo"])
def test_ones_own_demo_comes_before_the_bundled_one_and_is_told_of(name, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    if name == "demo":
        with pytest.warns(UserWarning, match="'demo' is the checkpoint in .*, not the bundled one"):
            assert hub.find(name) == tmp_path / "demo"
    else:
        assert hub.find(name) == tmp_path / "demo"


@pytest.mark.parametrize("content", [None, "a file", "notes.txt"])
def test_what_is_no_checkpoint_leaves_the_bundled_one_its_name(content, demo, tmp_path, monkeypatch):
    if content == "a file":
        (tmp_path / "demo").write_text("x")
    elif content:
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / content).write_text("x")
    monkeypatch.chdir(tmp_path)
    assert hub.find("demo") == demo


def test_an_adapter_called_demo_is_not_taken_for_the_bundled_one(tmp_path, monkeypatch):
    checkpoints.write_json(tmp_path / "demo" / "adapter_config.json", {})
    monkeypatch.chdir(tmp_path)
    with (
        pytest.warns(UserWarning, match="'demo' is"),
        pytest.raises(EmbeddingGemmaError, match="adapter"),
    ):
        EmbeddingGemma("demo")
