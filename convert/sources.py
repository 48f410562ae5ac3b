"""What can be converted, in one form: named matrices that are read some rows at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_embeddinggemma import hub, layout
from mlx_embeddinggemma.checkpoint import open_checkpoint
from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.head import Dense
from mlx_embeddinggemma.json_files import read_object
from mlx_embeddinggemma.modules import read_modules
from mlx_embeddinggemma.packed import unpack
from mlx_embeddinggemma.settings import TRANSFORMER, Settings, read_settings
from mlx_embeddinggemma.tensors import Tensor

# Copied as they are. modules.json is not: it would send readers to Dense folders that are no more.
# (Where the head has activations one is written all the same: it is the place to say so.)
COPIED = (
    "config_sentence_transformers.json",
    *TRANSFORMER,
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
        head: what else its layers do; empty where that is nothing.
        biases: of the head's layers that have one, by path.
        settings: to be carried on; None where the source has none.
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
    head: tuple[Dense, ...] = ()
    biases: Mapping[str, Matrix] = field(default_factory=dict)
    settings: Settings | None = None

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
    modules = read_modules(folder)
    raw = read_object(folder / "config.json")
    for key in ("quantization", "quantization_config"):
        raw.pop(key, None)
    if checkpoint.config.window_radius != int(raw["sliding_window"]) // 2:
        raw["sliding_window"] = 2 * checkpoint.config.window_radius  # halved on saving: repaired
    card = folder / "README.md"
    copied = {name: folder / name for name in COPIED if (folder / name).is_file()}
    paths = [f"{path}/config.json" for path in (modules.paths if modules else ())]
    described = [
        path for name in ("config.json", "modules.json", *paths) if (path := folder / name).is_file()
    ]
    weights = {tensor.path for tensor in checkpoint.tensors.values()}
    return Source(
        name=_name(model, folder),
        revision=folder.name if folder.parent.name == "snapshots" else revision,
        raw=raw,
        dense=checkpoint.dense,
        head=checkpoint.head,
        matrices={
            path: _matrix(path, shape, checkpoint.tensors, checkpoint.quantization.get(path))
            for path, shape in layout.matrices(checkpoint.config, checkpoint.dense).items()
        },
        norms={
            path: Floats(checkpoint.tensors[f"{path}.weight"])
            for path in layout.norms(checkpoint.config)
        },
        biases={
            f"dense.{i}": Floats(checkpoint.tensors[f"dense.{i}.bias"])
            for i, layer in enumerate(checkpoint.head)
            if layer.bias
        },
        settings=read_settings(folder, checkpoint.config.max_position_embeddings),
        files=dict(copied),
        inputs={
            str(path.relative_to(folder)): path
            for path in sorted({*described, *weights, *copied.values()})
        },
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
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
