"""Everything `config.json` says about the network, read once and frozen.

The file comes in several dialects: two ways to write the rope bases, `layer_types` present or not,
and fine-tunes whose window transformers halved on saving. All of them end here; the rest of the
package sees one form.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError

MATRYOSHKA = (512, 256, 128)  # EmbeddingGemma was trained to be cut here (arXiv 2509.20354)
WINDOW = 512  # `sliding_window` of every EmbeddingGemma; see `_window_radius`


@dataclass(frozen=True)
class Config:
    """The network's shape.

    Attributes:
        layer_types: "sliding_attention" or "full_attention", one a layer.
        rope_theta: rope base of each layer type.
        window_radius: a sliding layer's token i sees token j where `|i - j| <= window_radius`.
        quantization: config.json's table as it stands: defaults (`bits`, `group_size`, `mode`) and
            overrides by tensor path; empty for a float checkpoint.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    query_pre_attn_scalar: float
    max_position_embeddings: int
    layer_types: tuple[str, ...]
    rope_theta: Mapping[str, float]
    window_radius: int
    quantization: Mapping[str, Any]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Config":
        """Reads a parsed config.json.

        Raises:
            EmbeddingGemmaError: another architecture, a missing key, or a feature that no
                EmbeddingGemma has (soft caps, biases, a causal model, rope scaling).
        """
        _refuse_other_architectures(raw)
        try:
            layers = int(raw["num_hidden_layers"])
            heads, key_value_heads = _heads(raw)
            return cls(
                vocab_size=_size(raw, "vocab_size"),
                hidden_size=_size(raw, "hidden_size"),
                intermediate_size=_size(raw, "intermediate_size"),
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=key_value_heads,
                head_dim=_size(raw, "head_dim", multiple=2),  # RoPE turns pairs
                rms_norm_eps=_positive(raw, "rms_norm_eps"),
                query_pre_attn_scalar=_positive(raw, "query_pre_attn_scalar"),
                max_position_embeddings=_size(raw, "max_position_embeddings"),
                layer_types=_layer_types(raw, layers),
                rope_theta=MappingProxyType(_rope_theta(raw)),
                window_radius=_window_radius(int(raw["sliding_window"])),
                quantization=MappingProxyType(dict(raw.get("quantization") or {})),
            )
        except KeyError as error:
            raise EmbeddingGemmaError(f"config.json has no {error.args[0]!r}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, EmbeddingGemmaError):
                raise
            raise EmbeddingGemmaError(f"config.json holds a value of the wrong type: {error}") from None


def _refuse_other_architectures(raw: Mapping[str, Any]) -> None:
    if raw.get("model_type") != "gemma3_text":
        raise EmbeddingGemmaError(
            f"expected an EmbeddingGemma checkpoint (model_type 'gemma3_text'), "
            f"got {raw.get('model_type')!r}"
        )
    if not raw.get("use_bidirectional_attention", True):
        raise EmbeddingGemmaError(
            "config.json says use_bidirectional_attention: false: this is a causal Gemma 3 "
            "language model, not an EmbeddingGemma encoder"
        )
    expected = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None,
        "attention_bias": False,
        "rope_scaling": None,
    }
    for key, value in expected.items():
        if raw.get(key, value) != value:
            raise EmbeddingGemmaError(f"config.json: expected {key} {value!r}, got {raw[key]!r}")


def _size(raw: Mapping[str, Any], key: str, multiple: int = 1) -> int:
    try:
        size = int(raw[key])
    except (TypeError, ValueError, OverflowError):
        size = 0
    if not 1 <= size < 2**31 or size % multiple:
        of = f" that is a multiple of {multiple}" if multiple > 1 else ""
        raise EmbeddingGemmaError(
            f"config.json: expected for {key} a number from 1 to 2^31 - 1{of}, got {raw[key]!r:.40}"
        )
    return size


def _heads(raw: Mapping[str, Any]) -> tuple[int, int]:
    shared = _size(raw, "num_key_value_heads")
    return _size(raw, "num_attention_heads", multiple=shared), shared


def _positive(raw: Mapping[str, Any], key: str) -> float:
    try:
        value = float(raw[key])
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 < value < math.inf:
        raise EmbeddingGemmaError(
            f"config.json: expected for {key} a number above 0, got {raw[key]!r:.40}"
        )
    return value


def _layer_types(raw: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    if not 1 <= layers <= 1000:
        raise EmbeddingGemmaError(f"config.json: expected 1 to 1,000 layers, got {layers:,}")
    every = raw.get("_sliding_window_pattern", raw.get("sliding_window_pattern", 6))
    every = _size({"sliding_window_pattern": every}, "sliding_window_pattern")
    kinds = raw.get("layer_types") or [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)
    ]
    if len(kinds) != layers or set(kinds) - {"full_attention", "sliding_attention"}:
        raise EmbeddingGemmaError(
            f"config.json: expected {layers} layer_types of full_attention or sliding_attention, "
            f"got {len(kinds)}: {sorted(set(kinds))}"
        )
    return tuple(kinds)


def _rope_theta(raw: Mapping[str, Any]) -> dict[str, float]:
    new = raw.get("rope_parameters") or {}
    if new and not {"full_attention", "sliding_attention"} <= set(new):
        raise EmbeddingGemmaError(
            "config.json: expected rope_parameters for full_attention and sliding_attention, "
            f"got {sorted(new)}"
        )
    for kind, parameters in new.items():
        if parameters.get("rope_type", "default") != "default":
            raise EmbeddingGemmaError(
                f"config.json: expected rope_type 'default' for {kind}, got {parameters['rope_type']!r}"
            )
    if new:
        return {kind: _positive(parameters, "rope_theta") for kind, parameters in new.items()}
    return {
        "full_attention": _positive(raw, "rope_theta"),
        "sliding_attention": _positive(raw, "rope_local_base_freq"),
    }


def _window_radius(sliding_window: int) -> int:
    """The real radius: transformers turns 512 into 257 and attends where `|i - j| < 257`.

    transformers 4.57 to 5.15 also wrote that halved number back on every save, so a fine-tune may
    ship 257, 129, ... and mean 512.
    """
    halved = WINDOW
    while halved > 3:
        halved = halved // 2 + 1
        if sliding_window == halved:
            warnings.warn(
                f"config.json says sliding_window {sliding_window}: transformers halves the number "
                f"on saving; using EmbeddingGemma's {WINDOW}",
                stacklevel=2,
            )
            sliding_window = WINDOW
    if sliding_window < 2:
        raise EmbeddingGemmaError(f"config.json: expected sliding_window >= 2, got {sliding_window}")
    return sliding_window // 2
