"""`convert`: a source to a folder, whole or not at all."""

import fnmatch
import hashlib
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mlx_embeddinggemma import __version__, blas, compute, given, runtime
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.folders import new_folder
from mlx_embeddinggemma.head import Dense
from mlx_embeddinggemma.modules import write_modules
from mlx_embeddinggemma.settings import Settings, read_settings, write_settings
from mlx_embeddinggemma.tokenizer import Tokenizer, agrees, load_tokenizer

from .card import as_json, write_card
from .fidelity import Fidelity, compare, embed
from .formats import DTYPES, on_grid
from .gguf_file import open_gguf
from .recipes import Recipe, find_recipe
from .sample import SAMPLE
from .sentencepiece_model import from_json
from .sources import Source, open_folder
from .tuning import TEXTS, Packer, plainly, read_texts, tune
from .upload import check_repo, upload
from .writer import Piece, nbytes, plan, quantization_table, tensors, write


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with `dry_run` would do.

    Attributes:
        parts: name, number of weights, bits a weight and megabytes of the table, attention,
            feed-forward, norms and head; the whole last.
        tensors: name, dtype, shape and bytes of every tensor of the output.
        notes: what deserves a look: matrices left as floats, a recipe that moves weights off the
            grid they were trained for.
        fidelity: by dimension; empty for a dry run.
        inputs: sha256 of every input; empty for a dry run.
        seconds: wall time.
        peak_mb: the process's largest resident size so far, in units of 1e6 bytes.
    """

    source: str
    revision: str | None
    output: str
    recipe: str
    dtype: str
    parts: Sequence[Mapping[str, Any]]
    tensors: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    fidelity: Mapping[int, Fidelity]
    inputs: Mapping[str, str]
    seconds: float
    peak_mb: float


def convert(
    source: str | Path,
    output: str | Path,
    *,
    recipe: str | Path | Recipe = "4bit",
    group_size: int | None = None,
    dtype: str | None = None,
    force: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    dense_from: str | Path | None = None,
    tokenizer: str | Path | None = None,
    min_cosine: float | None = None,
    calibration: str | Path | None = None,
    upload_repo: str | None = None,
    dry_run: bool = False,
    progress: bool = False,
) -> Report:
    """Converts a checkpoint to an MLX folder.

    Args:
        source: a checkpoint's folder, "demo", a hub id or a GGUF file, whatever its name.
        output: the folder to write.
        recipe: a name in `RECIPES`, a TOML file, or a `Recipe`.
        group_size: neighbours that share a scale in affine formats: 32, 64 or 128.
        dtype: "bfloat16" or "float32", of floats and affine scales; by default the recipe's, and
            bfloat16 where it has none.
        force: replace `output` if it holds a checkpoint.
        revision: branch, tag or commit of a hub id.
        local_files_only: never go online.
        dense_from: a checkpoint to take the dense head from, for GGUF files without it.
        tokenizer: a folder with tokenizer files, for GGUF files without a usable one.
        min_cosine: fail, and write nothing, where the mean cosine to the source's vectors at the
            full size is lower.
        calibration: a file of plain texts, one a line, for recipes with a budget; by default the
            bundled ones.
        upload_repo: a repository on the hub, such as "user/model-4bit", to put the folder into.
        dry_run: only say what would be written.
        progress: a bar on stderr.

    Raises:
        EmbeddingGemmaError: the source is damaged or no EmbeddingGemma, the output cannot be
            written, or an argument is off. `output` is then as it was.
    """
    start = time.perf_counter()
    path, target = given.path("source", source), given.path("output", output)
    _check(given.path, dense_from=dense_from, tokenizer=tokenizer, calibration=calibration)
    _check(given.flag, force=force, dry_run=dry_run, progress=progress)
    _check(given.text, dtype=dtype, revision=revision, upload_repo=upload_repo)
    if min_cosine is not None:
        given.number("min_cosine", min_cosine, -1, 1)
    runtime.prepare()
    blas.set_threads(1)  # its batches are parted among the cores, and packing takes one of its own
    chosen = find_recipe(recipe)
    if group_size is not None:
        chosen = chosen.grouped(group_size)
    dtype = _dtype(chosen, dtype)
    if upload_repo is not None:
        check_repo(upload_repo)
    if str(source) != "demo" and os.path.isfile(path):  # whatever its name: it is looked into
        opened = open_gguf(path, dense_from=dense_from, tokenizer=tokenizer)
    else:
        opened = open_folder(source, revision=revision, local_files_only=local_files_only)
        if dense_from is not None or tokenizer is not None:
            raise EmbeddingGemmaError(
                f"dense_from and tokenizer are for GGUF files, and {source} is none"
            )
    texts = given.path("calibration", calibration or TEXTS)
    if chosen.budget:
        opened = replace(opened, inputs={**opened.inputs, f"calibration/{texts.name}": texts})
    elif calibration:
        raise EmbeddingGemmaError(f"recipe {chosen.name} has no use for calibration texts")
    before = _stamps(opened)
    if not dry_run:
        try:
            _check_target(target, opened, force)
        except OSError as error:
            raise EmbeddingGemmaError(f"cannot write {target}: {error.strerror}") from None
    pack: Packer = plainly
    if chosen.budget:
        chosen, pack = tune(opened, chosen, dtype, _ids(opened, read_texts(texts)), progress)
    pieces = plan(opened, chosen, dtype, pack)
    notes = _notes(opened, chosen, pieces)
    fidelity: Mapping[int, Fidelity] = {}
    inputs: Mapping[str, str] = {}
    if not dry_run:
        with new_folder(target, replace=force) as folder:
            fidelity, inputs = _fill(
                folder, target.name, opened, chosen, dtype, pieces, notes, progress
            )
            mean = fidelity[opened.dense[-1]].mean
            if min_cosine is not None and not mean >= min_cosine:  # NaN is not
                raise EmbeddingGemmaError(
                    f"mean cosine to the source is {mean:.6f}, expected at least {min_cosine}: "
                    "use a recipe with more bits; nothing was written"
                )
            if _stamps(opened) != before:
                raise EmbeddingGemmaError(f"{opened.name} changed while it was read: convert it again")
        if upload_repo is not None:
            upload(target, upload_repo)
    return Report(
        source=opened.name,
        revision=opened.revision,
        output=str(output),
        recipe=chosen.name,
        dtype=dtype,
        parts=_parts(pieces),
        tensors=[
            {"name": name, "dtype": kind, "shape": shape, "bytes": nbytes(kind, shape)}
            for name, kind, shape in tensors(pieces)
        ],
        notes=notes,
        fidelity=fidelity,
        inputs=inputs,
        seconds=time.perf_counter() - start,
        peak_mb=_peak_mb(),
    )


def _check(check: Callable[[str, object], object], **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            check(name, value)


def _dtype(recipe: Recipe, dtype: str | None) -> str:
    if dtype not in (None, *DTYPES):
        raise EmbeddingGemmaError(f"expected dtype {' or '.join(DTYPES)}, got {dtype!r}")
    if recipe.dtype and dtype not in (None, recipe.dtype):
        raise EmbeddingGemmaError(
            f"recipe {recipe.name} stores {recipe.dtype}: leave out --dtype, or take another"
        )
    return recipe.dtype or dtype or "bfloat16"


def _check_target(target: Path, source: Source, force: bool) -> None:
    """Refuses a target whose replacement would lose something, before any work is done."""
    if target.exists() and not force:
        raise EmbeddingGemmaError(f"{target} exists: choose another folder or replace it (--force)")
    for path in source.inputs.values():
        # A hub's cache holds links: neither they nor what they point to may go.
        if target.resolve() in {*path.resolve().parents, *(path.parent.resolve() / "_").parents}:
            raise EmbeddingGemmaError(f"{target} holds the source: choose another output folder")
    if force and target.is_dir() and any(target.iterdir()) and not (target / "config.json").exists():
        raise EmbeddingGemmaError(
            f"{target} is no checkpoint (no config.json): remove it yourself or choose another"
        )


def _fill(
    folder: Path,
    name: str,
    source: Source,
    recipe: Recipe,
    dtype: str,
    pieces: Sequence[Piece],
    notes: Sequence[str],
    progress: bool,
) -> tuple[Mapping[int, Fidelity], Mapping[str, str]]:
    """Writes every file of the output."""
    (folder / "config.json").write_text(as_json(_config(source, dtype, pieces)), "utf-8")
    if len(source.dense) == 1:
        (folder / "modules.json").write_text(as_json([]), "utf-8")  # says: no head
    elif not _is_plain(source):
        write_modules(folder, source.dense, source.head)
    # Packing and hashing take a core each; the source's vectors, whatever is left of them.
    with ThreadPoolExecutor(2) as pool, _bar(pieces, progress) as bar:
        weights = pool.submit(compute.run, write, folder / "model.safetensors", pieces, bar.update)
        digests = pool.submit(_digests, source)
        _write_tokenizer(folder, source)
        ids = _tokenizer(folder, source).encode(SAMPLE)
        expected = embed(source, ids)
        weights.result()  # first: what it refuses, it refuses by name
        open_checkpoint(folder)  # as any reader will
        got = embed(open_folder(folder), ids)
        inputs = digests.result()
    fidelity = compare(expected, got)
    record = {
        "source": source.name,
        "revision": source.revision,
        "inputs": inputs,
        "recipe": asdict(recipe),
        "dtype": dtype,
        "notes": notes,
        "versions": {"mlx-embeddinggemma": __version__}
        | {package: version(package) for package in ("mlx", "numpy", "sentencepiece")},
        "fidelity": {str(dim): asdict(value) for dim, value in fidelity.items()},
    }
    (folder / "conversion.json").write_text(as_json(record), "utf-8")
    described = f"{recipe.name} ({recipe.description})" if recipe.description else recipe.name
    card = write_card(source, name, described, _parts(pieces), notes, fidelity, inputs)
    (folder / "README.md").write_text(card, "utf-8")
    return fidelity, inputs


def _bar(pieces: Sequence[Piece], progress: bool) -> "tqdm[Any]":
    return tqdm(
        total=sum(math.prod(piece.shape) for piece in pieces),
        desc="converting",
        unit=" weights",
        unit_scale=True,
        delay=1,
        disable=not progress,
    )


def _stamps(source: Source) -> list[tuple[int, ...]]:
    """What tells that a file was written to, or replaced by another."""
    try:
        stats = [path.stat() for path in source.inputs.values()]
    except OSError:
        return []
    return [(s.st_size, s.st_mtime_ns, s.st_ino) for s in stats]


def _digests(source: Source) -> dict[str, str]:
    digests = {}
    for name, path in source.inputs.items():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(2**22):  # large, for a thread that seldom gets its turn
                digest.update(part)
        digests[name] = digest.hexdigest()
    return digests


def _write_tokenizer(folder: Path, source: Source) -> None:
    """The source's files and settings, and a tokenizer.model that agrees with them or none."""
    for name, content in source.files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_bytes(content)
    if source.settings:
        write_settings(folder, source.settings, source.config.max_position_embeddings)
    truth, quick = folder / "tokenizer.json", folder / "tokenizer.model"
    if not truth.exists() or (quick.exists() and agrees(folder)):
        return
    quick.unlink(missing_ok=True)  # other programs would believe it
    if model := from_json(truth):
        quick.write_bytes(model)


def _settings(folder: Path, source: Source) -> Settings:
    return source.settings or read_settings(folder, source.config.max_position_embeddings)


def _tokenizer(folder: Path, source: Source) -> Tokenizer:
    lower_case = _settings(folder, source).do_lower_case
    return load_tokenizer(folder, source.config.vocab_size, lower_case=lower_case)


def _is_plain(source: Source) -> bool:
    """Whether the head is as all readers of the output take it for: matrices alone."""
    return all(layer == Dense() for layer in source.head)


def _config(source: Source, dtype: str, pieces: Sequence[Piece]) -> dict[str, Any]:
    raw = {key: value for key, value in source.raw.items() if key != "torch_dtype"}
    raw["dtype"] = dtype
    if table := quantization_table(pieces):
        raw["quantization"] = raw["quantization_config"] = table
    return dict(sorted(raw.items()))


def _ids(source: Source, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts, under each of the checkpoint's prompts in turn."""
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(Path(folder), source)
        tokenizer = _tokenizer(Path(folder), source)
        prompts = sorted({*_settings(Path(folder), source).prompts.values(), ""})
        return tokenizer.encode([p + t for p, t in zip(cycle(prompts), texts, strict=False)])


def _notes(source: Source, recipe: Recipe, pieces: Sequence[Piece]) -> list[str]:
    notes = []
    floats = [piece for piece in pieces if piece.wanted and not piece.settings]
    if floats:
        listed = ", ".join(f"{p.path} ({p.shape[1]} inputs)" for p in floats[:4])
        more = f" and {len(floats) - 4} more" if len(floats) > 4 else ""
        notes.append(f"left as floats, their inputs no multiple of the group size: {listed}{more}")
    if not _is_plain(source):
        notes.append(
            "the head has activations, biases or normalizations, which modules.json describes: load it "
            "here, mlx-embeddings would leave them out"
        )
    grid = _grid_of(source)
    idle = [pattern for pattern, _ in recipe.rules if not fnmatch.filter(source.matrices, pattern)]
    if idle:
        more = f" and {len(idle) - 4} more" if len(idle) > 4 else ""
        notes.append(f"no matrix is called {', '.join(idle[:4])}{more}, as recipe {recipe.name} has it")
    kinds = {piece.wanted.kind for piece in pieces if piece.wanted and piece.settings}
    if grid and kinds and kinds != {grid}:
        notes.append(
            f"the weights lie on ggml's {grid} grid: recipe {grid} keeps them on it, "
            f"{recipe.name} moves them off"
        )
    return notes


def _grid_of(source: Source) -> str | None:
    """The grid on which the float matrices of the layers lie, judged by some rows of each kind."""
    found = set()
    for path, matrix in source.matrices.items():
        if path.startswith("layers.0.") and matrix.settings is None and matrix.shape[1] % 32 == 0:
            found.add(on_grid(np.array(matrix.rows(0, min(8, matrix.shape[0])))))
    return found.pop() if len(found) == 1 else None


PARTS = {
    "table": "embed_tokens",
    "attention": "self_attn",
    "feed-forward": "mlp",
    "dense": "dense",
    "norms": "norm",
}


def _parts(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    def part_of(piece: Piece) -> str:
        if len(piece.shape) == 1:
            return "norms"
        return next(part for part, mark in PARTS.items() if mark in piece.path.split("."))

    groups = {part: [p for p in pieces if part_of(p) == part] for part in PARTS}
    rows = []
    for part, group in [*groups.items(), ("all", pieces)]:
        weights = sum(math.prod(p.shape) for p in group)
        size = sum(p.nbytes for p in group)
        if group:
            rows.append(
                {"part": part, "weights": weights, "bits": 8 * size / weights, "MB": size / 1e6}
            )
    return rows


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
