"""A checkpoint's weights into the network, each in the form that this machine computes with."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_embeddinggemma import layout, runtime
from mlx_embeddinggemma.checkpoint import Checkpoint, some
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.expansion import Expanded
from mlx_embeddinggemma.linear import Linear
from mlx_embeddinggemma.model import Model, RMSNorm
from mlx_embeddinggemma.packed import unpack
from mlx_embeddinggemma.table import VocabularyTable

Read = Callable[[str], mx.array]


def load_model(checkpoint: Checkpoint, dtype: mx.Dtype, *, dequantize: bool = False) -> Model:
    """The network, ready to compute.

    On a GPU it holds packed weights as they are and others in `dtype`. On the CPU it holds float32
    ones; the rest stay in their file, as the vocabulary table does everywhere, and are read and
    expanded for each batch.

    Args:
        checkpoint: from `open_checkpoint`.
        dtype: of the activations.
        dequantize: expand every weight here and once, and hold it in `dtype`.

    Raises:
        EmbeddingGemmaError: a weight is NaN or infinite.
    """
    table = {
        name.rpartition(".")[2]: tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(f"{layout.TABLE}.")
    }
    rows = VocabularyTable(table, checkpoint.quantization.get(layout.TABLE, {}), dtype)
    model = Model(checkpoint.config, rows, checkpoint.dense, checkpoint.head)
    loader = _Loader(checkpoint, dtype, dequantize)
    model.layers = [loader.load(layer, f"layers.{i}") for i, layer in enumerate(model.layers)]
    model.norm = loader.load(model.norm, "norm")
    model.dense = [loader.load(dense, f"dense.{i}") for i, dense in enumerate(model.dense)]
    loader.check()
    return model


class _Loader:
    def __init__(self, checkpoint: Checkpoint, dtype: mx.Dtype, dequantize: bool):
        self._checkpoint, self._dtype, self._dequantize = checkpoint, dtype, dequantize
        self._sums: dict[str, mx.array] = {}

    def load(self, module: Any, path: str) -> Any:
        """A part of the network with its weights, or with the way to get them at each call."""
        expanded: dict[str, Callable[[], mx.array]] = {}
        for name, child in module.named_modules():
            child_path = f"{path}.{name}".rstrip(".")
            if f"{child_path}.bias" in self._checkpoint.tensors:
                child.bias = self._checked(f"{child_path}.bias").astype(mx.float32)
                mx.eval(child.bias, self._sums)
            if isinstance(child, RMSNorm):
                # 1 + w in float32, then rounded once.
                w = self._checked(f"{child_path}.weight").astype(mx.float32)
                child.weight = (1 + w).astype(self._dtype)
            elif not isinstance(child, Linear):
                continue
            elif self._is_held(child_path):
                self._fill(child, child_path)
            else:
                expanded[name] = partial(self._floats, child_path, self._read)
                self._check_stored(child_path)
                continue
            # One at a time, and never a container: its other modules still hold zeros of full size.
            mx.eval(child.parameters(), self._sums)
        if not expanded:
            return module
        runtime.return_freed_memory()
        return Expanded(module, expanded)

    def check(self) -> None:
        """Raises the error for all weights so far that are not finite."""
        bad = sorted(name for name, value in self._sums.items() if not mx.isfinite(value).item())
        if bad:
            raise EmbeddingGemmaError(
                f"{self._checkpoint.folder}: NaN or infinite weights in {some(bad)}"
            )

    def _is_held(self, path: str) -> bool:
        tensors = self._checkpoint.tensors
        return (
            self._dequantize
            or runtime.on_gpu()
            or all(tensors[f"{part}.weight"].dtype in ("F32", "F64") for part in layout.parts(path))
        )

    def _fill(self, linear: Linear, path: str) -> None:
        settings = self._settings(path)
        if len(settings) == 1 and settings[0] and not self._dequantize:
            linear.pack(self._packed(layout.parts(path), settings[0], self._checked), settings[0])
        else:
            linear.weight = self._floats(path, self._checked)

    def _settings(self, path: str) -> list[dict[str, Any]]:
        """How the matrices are packed that the network stores as one: one entry if all alike."""
        found = [self._checkpoint.quantization.get(part, {}) for part in layout.parts(path)]
        return found[:1] if all(settings == found[0] for settings in found) else found

    def _floats(self, path: str, read: Read) -> mx.array:
        """The matrices that the network stores as one, (sum of outputs, inputs)."""
        parts, settings = layout.parts(path), self._settings(path)
        groups = [parts] if len(settings) == 1 else [[part] for part in parts]
        weights = []
        for group, how in zip(groups, settings, strict=True):
            if how:
                weight = unpack(**self._packed(group, how, read), **how)
            else:
                weight = mx.concatenate([read(f"{part}.weight") for part in group])
            weights.append(weight.astype(self._dtype))
        return mx.concatenate(weights)

    def _packed(
        self, parts: Sequence[str], settings: dict[str, Any], read: Read
    ) -> dict[str, mx.array]:
        names = ["weight", "scales"] + ["biases"] * (settings["mode"] == "affine")
        return {n: mx.concatenate([read(f"{part}.{n}") for part in parts]) for n in names}

    def _read(self, name: str) -> mx.array:
        return self._checkpoint.tensors[name].read()

    def _checked(self, name: str) -> mx.array:
        array = self._read(name)
        if mx.issubdtype(array.dtype, mx.floating):
            # A sum is finite only if all its terms are: one pass, no mask in memory.
            self._sums[name] = array.astype(mx.float32).sum()
        return array

    def _check_stored(self, path: str) -> None:
        for part in layout.parts(path):
            for name in ("weight", "scales", "biases"):
                tensor = self._checkpoint.tensors.get(f"{part}.{name}")
                if tensor and tensor.dtype not in ("U32", "U8"):
                    self._checked(f"{part}.{name}")
        mx.eval(self._sums)
