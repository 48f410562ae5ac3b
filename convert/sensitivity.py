"""What an error in each matrix does to the sentence vectors, to second order.

A change dW of a matrix moves a text's vector y. With u a random sign for each component of y, the
expected square of (d(u y) / dW) dW is |dy|^2, which is 2 (1 - cosine). A text's gradient is the sum
over its tokens of g x^T, g at the matrix's output and x at its input: so for errors that are
independent from row to row, |dy|^2 is, in the mean over a matrix's rows e of dW, e^T H e with

    H = mean over texts of X^T (G G^T) X,    X (L, inputs), G (L, outputs),

which costs no more than the gradient. Token by token, X^T X would miss that the errors of a text's
tokens add up in the mean. The table's H is that of the gradients at its rows.

Shapes: B texts, L tokens, D hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log
from tempfile import TemporaryFile, gettempdir
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_embeddinggemma import layout
from mlx_embeddinggemma.batching import batches, pad
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.linear import Linear
from mlx_embeddinggemma.model import Model, RMSNorm

from .fidelity import Table, fill
from .sources import Source

BATCH_TOKENS = 1024  # of which every layer's input is kept: 75 MB in a full-size model

Hessian = npt.NDArray[np.float32]


class Hessians(Mapping[str, Hessian]):
    """Means of H by the network's path, kept in a nameless file: a full-size model's are 340 MB."""

    def __init__(self, texts: int):
        self._texts = texts
        self._file = TemporaryFile()  # noqa: SIM115 - closed, and gone, with this object
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def __del__(self) -> None:
        self._file.close()

    def add(self, path: str, h: mx.array) -> None:
        """Adds the sum over some of the texts."""
        total = np.array(h)
        if path in self._places:
            total += self._read(path)
        else:
            self._places[path] = self._end, len(total)
            self._end += total.nbytes
        try:
            self._file.seek(self._places[path][0])
            self._file.write(total.data)
            self._file.flush()
        except OSError as error:
            raise EmbeddingGemmaError(
                f"cannot write to {gettempdir()}: {error.strerror}; calibration needs room there for "
                "a number for every pair of a matrix's inputs, or a TMPDIR that has it"
            ) from None

    def _read(self, path: str) -> Hessian:
        place, n = self._places[path]
        self._file.seek(place)
        return np.frombuffer(self._file.read(4 * n * n), np.float32).reshape(n, n)

    def __getitem__(self, path: str) -> Hessian:
        return self._read(path) / np.float32(self._texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def hessians(
    source: Source, ids: Sequence[Sequence[int]], advance: Callable[[int], object]
) -> Hessians:
    """H (inputs, inputs) by the network's path: q, k and v share one, and so do gate and up.

    One layer's weights are in memory at a time.

    Args:
        source: the checkpoint.
        ids: tokens of the calibration texts.
        advance: called with the number of texts done since the last call.
    """
    table = Table(source.matrices[layout.TABLE])
    model: Any = Model(source.config, table, source.dense, source.head)
    norm, model.norm = model.norm, lambda x: x  # `hidden_states` then ends before the norm
    head = _Stage(
        lambda x, lengths: model.pool(norm(x), lengths),
        {"norm": norm} | {f"dense.{i}": dense for i, dense in enumerate(model.dense)},
        source,
    )
    layers = [_layer(layer, f"layers.{i}", source) for i, layer in enumerate(model.layers)]
    model.layers = layers
    found = Hessians(len(ids))
    generator = np.random.default_rng(0)
    for batch in batches([len(row) for row in ids], BATCH_TOKENS):
        tokens, lengths = pad([ids[i] for i in batch])
        y = head(model.hidden_states(tokens, lengths), mx.array(lengths))
        signs = 2 * generator.integers(0, 2, y.shape) - 1
        gradient = mx.array(signs.astype(np.float32))
        for stage in (head, *reversed(layers)):
            gradient = stage.backward(gradient, found)
        rows = _row_gradients(tokens, lengths, np.array(gradient))
        found.add(layout.TABLE, rows.T @ rows)
        advance(len(batch))
    return found


def _layer(layer: Any, path: str, source: Source) -> "_Stage":
    # Ways to compute that have a derivative on every device.
    layer.self_attn.power = lambda x: mx.exp(x * log(2))
    layer.mlp.geglu = lambda gate, up: nn.gelu_approx(gate) * up
    leaves = {
        f"{path}.{name}": module
        for name, module in layer.named_modules()
        if isinstance(module, Linear | RMSNorm)
    }
    return _Stage(layer, leaves, source)


def _row_gradients(tokens: np.ndarray, lengths: np.ndarray, gradient: np.ndarray) -> mx.array:
    """A table row's gradient in a text is the sum over the places where the text has it."""
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    text_and_token = np.stack([np.nonzero(real)[0], tokens[real]])
    unique, place = np.unique(text_and_token, axis=1, return_inverse=True)
    D = gradient.shape[-1]
    rows = np.zeros((unique.shape[1], D), np.float32)
    np.add.at(rows, place.ravel(), gradient[real] * np.float32(D**0.5))
    return mx.array(rows)


class _Tapped(Linear):
    """A linear layer that keeps its input, and adds a probe to its outputs: its gradient is G."""

    def __call__(self, x: mx.array) -> mx.array:
        y = super().__call__(x)
        if (probe := self.get("_probe")) is None:
            return y
        # A layer comes part by part of the positions.
        start = sum(part.shape[1] for part in self._seen)
        self._seen.append(x)
        here: mx.array = probe[:, start : start + x.shape[1]] if x.ndim > 2 else probe
        return y + here


class _Stage:
    """A piece of the network, run forward and then backward, with its weights in memory just then.

    Args:
        function: the piece.
        leaves: its norms and linear layers by path.
        source: of their weights.
    """

    def __init__(self, function: Callable[..., mx.array], leaves: Mapping[str, Any], source: Source):
        self._function, self._leaves, self._source = function, leaves, source
        self._empty = {path: module.parameters() for path, module in leaves.items()}
        self._taps = {path: m for path, m in leaves.items() if isinstance(m, Linear)}
        for module in self._taps.values():
            module.__class__ = _Tapped

    def __call__(self, *inputs: Any) -> mx.array:
        """Forward; the inputs are kept."""
        self._inputs = inputs
        self._load()
        result = self._function(*inputs)
        mx.eval(result)
        self._unload()
        return result

    def backward(self, gradient: mx.array, found: Hessians) -> mx.array:
        """The gradient at the first input of the last forward run, from that at its result."""
        x, *others = self._inputs
        self._load()
        taps = list(self._taps.values())

        def run(x: mx.array, *probes: mx.array) -> list[mx.array]:
            for tap, probe in zip(taps, probes, strict=True):
                tap._probe, tap._seen = probe, []
            y = self._function(x, *others)
            return [y, *(mx.concatenate(tap._seen, axis=1) for tap in taps)]

        B = x.shape[0]
        place = gradient.shape[:-1]  # (B, L), or (B,) after the mean
        probes = [mx.zeros((*place, tap.weight.shape[0])) for tap in taps]
        unused = [mx.zeros((*place, tap.weight.shape[1])) for tap in taps]
        (_, *seen), (below, *grads) = mx.vjp(run, [x, *probes], [gradient, *unused])
        for path, X, G in zip(self._taps, seen, grads, strict=True):
            X, G = X.reshape(B, -1, X.shape[-1]), G.reshape(B, -1, G.shape[-1])
            weighted = (G @ G.swapaxes(1, 2)) @ X
            found.add(path, X.reshape(-1, X.shape[-1]).T @ weighted.reshape(-1, X.shape[-1]))
        mx.eval(below)
        self._unload()
        self._inputs = ()
        return below

    def _load(self) -> None:
        for path, module in self._leaves.items():
            fill(module, path, self._source)

    def _unload(self) -> None:
        for path, module in self._leaves.items():
            module.update(self._empty[path])
            for name in ("_seen", "_probe"):
                module.pop(name, None)
