"""The network: token ids to sentence vectors.

Gemma 3 without its causal mask: 24 layers of attention and gated feed-forward, each wrapped in a
norm before and a norm after, five layers with a window to one without; then the mean over a text's
tokens and two linear layers. What is unusual: keys and queries are normalised per head before the
rotation, norms multiply by 1 + w, and one key-value head serves all query heads.

Shapes: B texts, L tokens, D hidden size, H query heads, K key-value heads, d head size.
Reference: `Gemma3TextModel` in transformers; layout and constants of google/embeddinggemma-300m.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_embeddinggemma import runtime
from mlx_embeddinggemma.activation import geglu
from mlx_embeddinggemma.attention import Span, attend, spans
from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.exponential import exp2
from mlx_embeddinggemma.head import Dense
from mlx_embeddinggemma.linear import Linear


class RMSNorm(nn.Module):
    """`x / rms(x) * (1 + w)`, of w's dtype. The checkpoint stores w; `weight` is the whole factor."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = mx.ones((size,))
        self._eps = eps
        # From numpy: no operation that would be left to do, which another thread could not.
        self._mean = mx.array(np.full((size, 1), 1 / size, np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        if runtime.on_gpu():
            return mx.fast.rms_norm(x, self.weight, self._eps).astype(self.weight.dtype)
        # MLX's CPU sums take 0.8 ns an element, as long as all else here; the BLAS's take 0.1.
        y = x.astype(mx.float32)
        y = y * mx.rsqrt((y * y) @ self._mean + self._eps) * self.weight
        return y.astype(self.weight.dtype)


Rope = tuple[mx.array, mx.array]


def rope_table(part: slice, d: int, theta: float) -> Rope:
    """Cosine of the angles at a part's positions, and sine for `rotate`, each (positions, 1, d).

    Positions times frequencies in float32, as the reference multiplies them: at position 2,047 a
    frequency's last bit moves the angle by 1e-4.
    """
    frequencies = 1.0 / theta ** (np.arange(0, d, 2, dtype=np.float32) / np.float32(d))
    positions = np.arange(part.start, part.stop, dtype=np.float32)[:, None, None]
    angles = positions * frequencies.astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    return mx.array(np.tile(cos, 2)), mx.array(np.concatenate([-sin, sin], axis=-1))


def rotate(x: mx.array, rope: Rope) -> mx.array:
    """Turns the pairs (x[i], x[i + d/2]) of (B, L, heads, d) by their position's angle."""
    cos, sin = rope
    # The halves swapped through a view: nothing is copied.
    swapped = mx.unflatten(x, -1, (2, -1))[..., ::-1, :] * mx.unflatten(sin, -1, (2, -1))
    return (x * cos + swapped.flatten(-2)).astype(x.dtype)


class Attention(nn.Module):
    """Self-attention with one key-value head for all query heads."""

    power = staticmethod(exp2)  # fine-tuning puts one with a derivative here, and for `geglu` below

    def __init__(self, config: Config):
        super().__init__()
        H, K, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = Linear(config.hidden_size, [H * d, K * d, K * d])
        self.o_proj = Linear(H * d, [config.hidden_size])
        self.q_norm = RMSNorm(d, config.rms_norm_eps)
        self.k_norm = RMSNorm(d, config.rms_norm_eps)
        self._heads = H, K
        self._scale = config.query_pre_attn_scalar**-0.5

    def project(self, x: mx.array, rope: Rope) -> tuple[mx.array, mx.array, mx.array]:
        """Queries (B, L, H, d), keys and values (B, L, K, d) of (B, L, D)."""
        H, K = self._heads
        heads = self.qkv_proj(x).reshape(*x.shape[:2], H + K + K, -1)
        q, k, v = mx.split(heads, [H, H + K], axis=2)
        return rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope), v

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, seen: Sequence[Span]) -> mx.array:
        return self.o_proj(attend(q, k, v, seen, self._scale, self.power))


class FeedForward(nn.Module):
    """down(gelu(gate(x)) * up(x))."""

    geglu = staticmethod(geglu)

    def __init__(self, config: Config):
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, [config.intermediate_size] * 2)
        self.down_proj = Linear(config.intermediate_size, [config.hidden_size])

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(self.geglu(gate, up))


class Layer(nn.Module):
    """Attention and feed-forward, a norm before and after each, inside the residual."""

    def __init__(self, config: Config):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(D, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(D, eps)
        self.pre_feedforward_layernorm = RMSNorm(D, eps)
        self.mlp = FeedForward(config)
        self.post_feedforward_layernorm = RMSNorm(D, eps)

    def __call__(self, x: mx.array, ropes: Sequence[Rope], spans: Sequence[Sequence[Span]]) -> mx.array:
        """(B, L, D) to (B, L, D), part by part of the L positions; parts meet in keys and values.

        Args:
            x: what the layer below left.
            ropes: each part's angles.
            spans: who sees whom in each part.
        """

        def project(x: mx.array, rope: Rope) -> tuple[mx.array, mx.array, mx.array]:
            return self.self_attn.project(self.input_layernorm(x), rope)

        def finish(x: mx.array, q: mx.array, seen: Sequence[Span]) -> mx.array:
            x = x + self.post_attention_layernorm(self.self_attn(q, k, v, seen))
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))

        ends = np.cumsum([len(cos) for cos, _ in ropes])
        xs = list(mx.split(x, ends[:-1].tolist(), axis=1))
        qs, ks, vs = map(list, zip(*runtime.each(project, xs, ropes), strict=True))
        k, v = mx.concatenate(ks, axis=1), mx.concatenate(vs, axis=1)
        return mx.concatenate(runtime.each(finish, xs, qs, spans), axis=1)


class Model(nn.Module):
    """The whole encoder.

    Args:
        config: the network's shape.
        embed_tokens: token ids (B, L) to embedding rows (B, L, D): the vocabulary table, which
            stays on disk and so is not one of the network's parameters.
        dense: sizes along the head, (768, 3072, 768) in EmbeddingGemma; a single size means no head.
        head: what else its layers do.
    """

    def __init__(
        self,
        config: Config,
        embed_tokens: Callable[[np.ndarray], mx.array],
        dense: Sequence[int],
        head: Sequence[Dense],
    ):
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dense = [Linear(n, [m]) for n, m in zip(dense[:-1], dense[1:], strict=True)]
        self._head = tuple(head)
        self._config = config
        self._embed_tokens = embed_tokens

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> mx.array:
        """Unit sentence vectors, (B, last dense size) float32.

        Args:
            ids: (B, L) int32, padded on the right with any valid id.
            lengths: (B,) real tokens of each text, at least one.
        """
        return self.pool(self.hidden_states(ids, lengths), mx.array(lengths))

    def hidden_states(self, ids: np.ndarray, lengths: np.ndarray) -> mx.array:
        """What leaves the last layer's norm, (B, L, D)."""
        config = self._config
        x = self._embed_tokens(ids)
        x = x * mx.array(config.hidden_size**0.5).astype(x.dtype)
        # What 48 branches add to is never rounded to bfloat16: that would be half of its error.
        x = x.astype(mx.float32)
        B, L = ids.shape
        parts = runtime.parts(B, L)
        radius = {"sliding_attention": config.window_radius, "full_attention": None}
        seen = {
            kind: [spans(lengths, L, radius[kind], part) for part in parts]
            for kind in set(config.layer_types)
        }
        ropes = {
            kind: [rope_table(part, config.head_dim, theta) for part in parts]
            for kind, theta in config.rope_theta.items()
        }
        for layer, kind in zip(self.layers, config.layer_types, strict=True):
            x = layer(x, ropes[kind], seen[kind])
        return self.norm(x)

    def pool(self, x: mx.array, lengths: mx.array) -> mx.array:
        """Mean over the real tokens, dense layers, unit length: (B, L, D) to (B, size)."""
        real = (mx.arange(x.shape[1]) < lengths[:, None])[..., None]
        # Select, never multiply: whatever stands in a padding position must not reach the mean.
        y = mx.where(real, x.astype(mx.float32), 0).sum(axis=1) / lengths[:, None]
        for layer, dense in zip(self._head, self.dense, strict=True):
            y = layer(dense, y)
        return y / mx.linalg.norm(y, axis=-1, keepdims=True)
