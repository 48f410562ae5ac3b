"""What can be converted, in one form: named matrices that are read some rows at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_embeddinggemma import hub, layout
from mlx_embeddinggemma.checkpoint import open_checkpoint, read_json
from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.packed import unpack
from mlx_embeddinggemma.prompts import load_prompts
from mlx_embeddinggemma.tensors import Tensor

# Copied as they are. modules.json is not: it would send readers to Dense folders that are no more.
COPIED = (
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class Matrix(Protocol):
    """A matrix (or a norm's vector) of a source.

    Attributes:
        shape: of the floats.
        settings: `group_size`, `bits`, `mode` where the source holds it packed, else None.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def settings(self) -> dict[str, Any] | None: ...

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows `start` to `stop` as float32."""
        ...

    def packed_rows(self, start: int, stop: int) -> dict[str, mx.array]:
        """The same rows as they are packed: "weight", "scales" and perhaps "biases"."""
        ...


@dataclass(frozen=True)
class Floats:
    """A matrix that a safetensors file holds as floats."""

    tensor: Tensor
    settings: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.tensor.shape

    def rows(self, start: int, stop: int) -> mx.array:
        """See `Matrix`."""
        return part(self.tensor, start, stop).read().astype(mx.float32)

    def packed_rows(self, start: int, stop: int) -> dict[str, mx.array]:
        """Floats have no packed form."""
        raise NotImplementedError


@dataclass(frozen=True)
class Packed:
    """A matrix that a safetensors file holds packed by MLX."""

    tensors: Mapping[str, Tensor]
    shape: tuple[int, ...]
    settings: dict[str, Any]

    def rows(self, start: int, stop: int) -> mx.array:
        """See `Matrix`."""
        packed = self.packed_rows(start, stop)
        if "biases" in packed:
            # 16-bit scales would round the product; the encoder's matrix kernels do not either.
            packed |= {name: packed[name].astype(mx.float32) for name in ("scales", "biases")}
        return unpack(**packed, **self.settings).astype(mx.float32)

    def packed_rows(self, start: int, stop: int) -> dict[str, mx.array]:
        """See `Matrix`."""
        return {name: part(tensor, start, stop).read() for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Source:
    """Everything a conversion reads.

    Attributes:
        name: what the outputs call it: the hub id, or a folder's or a file's own name (never its
            path, which is nobody else's business).
        revision: the commit of a hub id.
        raw: config.json, without quantization.
        dense: sizes along the head.
        matrices: by path in `layout`, the vocabulary table first.
        norms: w (not 1 + w) by path.
        files: what goes into the output beside the weights, by name: a file, or its content.
        inputs: every file that counts as input, by the name to call it.
        card: the source's own README.md, or "".
    """

    name: str
    revision: str | None
    raw: dict[str, Any]
    dense: tuple[int, ...]
    matrices: Mapping[str, Matrix]
    norms: Mapping[str, Matrix]
    files: Mapping[str, Path | bytes]
    inputs: Mapping[str, Path]
    card: str = ""

    @property
    def config(self) -> Config:
        """The network's shape."""
        return Config.from_dict(self.raw)


def open_folder(
    model: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> Source:
    """A checkpoint's folder, "demo" or a hub id.

    Raises:
        EmbeddingGemmaError: not there, or not a whole and sound checkpoint.
    """
    folder = hub.find(model, revision=revision, local_files_only=local_files_only)
    checkpoint = open_checkpoint(folder)
    raw = read_json(folder / "config.json")
    for key in ("quantization", "quantization_config"):
        raw.pop(key, None)
    if checkpoint.config.window_radius != int(raw["sliding_window"]) // 2:
        raw["sliding_window"] = 2 * checkpoint.config.window_radius  # halved on saving: repaired
    _check_copied(folder)
    card = folder / "README.md"
    copied = {name: folder / name for name in COPIED if (folder / name).is_file()}
    described = [
        folder / "config.json",
        *folder.glob("modules.json"),
        *folder.glob("*_Pooling/*.json"),
        *folder.glob("*_Dense/*.json"),
    ]
    weights = {tensor.path for tensor in checkpoint.tensors.values()}
    return Source(
        name=_name(model, folder),
        revision=folder.name if folder.parent.name == "snapshots" else revision,
        raw=raw,
        dense=checkpoint.dense,
        matrices={
            path: _matrix(path, shape, checkpoint.tensors, checkpoint.quantization.get(path))
            for path, shape in layout.matrices(checkpoint.config, checkpoint.dense).items()
        },
        norms={
            path: Floats(checkpoint.tensors[f"{path}.weight"])
            for path in layout.norms(checkpoint.config)
        },
        files=dict(copied),
        inputs={
            str(path.relative_to(folder)): path
            for path in sorted({*described, *weights, *copied.values()})
        },
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    )


def _check_copied(folder: Path) -> None:
    """Refuses settings that would be copied unread, and spoil the output."""
    load_prompts(folder)
    path = folder / "sentence_bert_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict) or not isinstance(settings.get("max_seq_length", 0), int | None):
        raise EmbeddingGemmaError(
            f"{path}: expected an object with max_seq_length, got {settings!r:.80}"
        )


def _name(model: str | Path, folder: Path) -> str:
    return folder.resolve().name if Path(model).expanduser().is_dir() else str(model)


def _matrix(
    path: str,
    shape: tuple[int, int],
    tensors: Mapping[str, Tensor],
    settings: dict[str, Any] | None,
) -> Matrix:
    if settings is None:
        return Floats(tensors[f"{path}.weight"])
    names: Sequence[str] = ("weight", "scales", "biases")
    return Packed(
        {n: tensors[f"{path}.{n}"] for n in names if f"{path}.{n}" in tensors}, shape, settings
    )


def part(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of a tensor, as a tensor of its own."""
    rows, *columns = tensor.shape
    return replace(
        tensor,
        shape=(stop - start, *columns),
        offset=tensor.offset + start * (tensor.nbytes // rows),
    )
