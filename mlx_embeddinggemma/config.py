"""Everything `config.json` says about the network, read once and frozen.

The file comes in several dialects: two ways to write the rope bases, `layer_types` present or not,
and fine-tunes whose window transformers halved on saving. All of them end here; the rest of the
package sees one form. What the file does not say is what transformers (`Gemma3TextConfig`) takes for
it, where an EmbeddingGemma has that too, and a mistake where it has not.
"""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mlx_embeddinggemma.errors import EmbeddingGemmaError

MATRYOSHKA = (512, 256, 128)  # EmbeddingGemma was trained to be cut here (arXiv 2509.20354)
WINDOW = 512  # `sliding_window` of every EmbeddingGemma; see `_window_radius`
# transformers' defaults that are EmbeddingGemma's as well. Its others are a larger model's: without
# `hidden_size` or `sliding_window` it takes a network of 2,304 with a window of 4,096.
DEFAULTS = {"head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6}
# Types of layers, each with the older key of its rope base, and what that is by default.
KINDS = {
    "full_attention": ("rope_theta", 1_000_000.0),
    "sliding_attention": ("rope_local_base_freq", 10_000.0),
}


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
        raw = {**DEFAULTS, **raw}
        try:
            heads, key_value_heads = _heads(raw)
            return cls(
                vocab_size=_integer(raw, "vocab_size"),
                hidden_size=_integer(raw, "hidden_size"),
                intermediate_size=_integer(raw, "intermediate_size"),
                num_hidden_layers=_integer(raw, "num_hidden_layers", most=1000),
                num_attention_heads=heads,
                num_key_value_heads=key_value_heads,
                head_dim=_integer(raw, "head_dim", most=2**16, multiple=2),  # RoPE turns pairs
                rms_norm_eps=_positive(raw, "rms_norm_eps"),
                query_pre_attn_scalar=_positive(raw, "query_pre_attn_scalar"),
                max_position_embeddings=_integer(raw, "max_position_embeddings"),
                layer_types=_layer_types(raw),
                rope_theta=MappingProxyType(_rope_theta(raw)),
                window_radius=_window_radius(_integer(raw, "sliding_window", least=2)),
                quantization=MappingProxyType(dict(_table(raw, "quantization"))),
            )
        except KeyError as error:
            raise EmbeddingGemmaError(f"config.json has no {error.args[0]!r}") from None


def _refuse_other_architectures(raw: Mapping[str, Any]) -> None:
    if raw.get("model_type") != "gemma3_text":
        raise EmbeddingGemmaError(
            f"expected an EmbeddingGemma checkpoint (model_type 'gemma3_text'), "
            f"got {raw.get('model_type')!r:.80}"
        )
    # Absent or null, it is false to transformers.
    if (both_ways := raw.get("use_bidirectional_attention")) is not True:
        raise EmbeddingGemmaError(
            f"config.json: expected use_bidirectional_attention true, got {both_ways!r:.40}: without "
            "it this is a causal Gemma 3 language model; if it is an EmbeddingGemma, write true there"
        )
    expected = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None,
        "attention_bias": False,
    }
    for key, value in expected.items():
        if (got := raw.get(key, value)) != value:
            raise EmbeddingGemmaError(f"config.json: expected {key} {value!r}, got {got!r:.80}")
    method = _table(raw, "quantization_config").get("quant_method")  # MLX names none
    if method is not None:
        raise EmbeddingGemmaError(
            "config.json: expected float weights or MLX's quantization, got quant_method "
            f"{method!r:.80}: save the model dequantized"
        )


def _integer(
    raw: Mapping[str, Any], key: str, *, least: int = 1, most: int = 2**31 - 1, multiple: int = 1
) -> int:
    value = raw[key]
    # type(), for a bool is an int too. transformers refuses "768", 768.0 and true as well.
    if type(value) is not int or not least <= value <= most or value % multiple:
        of = f" that is a multiple of {multiple:,}" if multiple > 1 else ""
        raise EmbeddingGemmaError(
            f"config.json: expected for {key} an integer from {least:,} to {most:,}{of}, "
            f"got {value!r:.40}"
        )
    return value


def _heads(raw: Mapping[str, Any]) -> tuple[int, int]:
    shared = _integer(raw, "num_key_value_heads")
    return _integer(raw, "num_attention_heads", multiple=shared), shared


def _positive(raw: Mapping[str, Any], key: str) -> float:
    value = raw[key]
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise EmbeddingGemmaError(
            f"config.json: expected for {key} a number above 0, got {value!r:.40}"
        )
    return float(value)


def _table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise EmbeddingGemmaError(f"config.json: expected for {key} an object, got {value!r:.80}")
    return value or {}


def _layer_types(raw: Mapping[str, Any]) -> tuple[str, ...]:
    layers = raw["num_hidden_layers"]
    kinds = raw.get("layer_types")
    if kinds is None:
        # As transformers: it writes `_sliding_window_pattern` and never reads it.
        every = _integer({"sliding_window_pattern": 6, **raw}, "sliding_window_pattern")
        kinds = [
            "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)
        ]
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in tuple(KINDS) for k in kinds):
        raise EmbeddingGemmaError(
            f"config.json: expected {layers} layer_types of {' or '.join(KINDS)}, got {kinds!r:.80}"
        )
    return tuple(kinds)


def _rope_theta(raw: Mapping[str, Any]) -> dict[str, float]:
    found = _table(raw, "rope_parameters")
    if not found.keys() <= set(KINDS):
        raise EmbeddingGemmaError(
            f"config.json: expected rope_parameters for {' and '.join(KINDS)}, got {found!r:.80}"
        )
    bases = {}
    for kind, (key, default) in KINDS.items():
        parameters = _table(found, kind)
        if kind == "full_attention":  # which transformers scales alone
            parameters = parameters | _table(raw, "rope_scaling")
        _refuse_scaling(kind, parameters)
        if "rope_theta" in parameters:
            bases[kind] = _positive(parameters, "rope_theta")
        else:
            bases[kind] = _positive({key: default, **raw}, key)
    return bases


def _refuse_scaling(kind: str, parameters: Mapping[str, Any]) -> None:
    """Refuses positions that are stretched. `type` is what older files call `rope_type`."""
    types = [parameters[key] for key in ("rope_type", "type") if key in parameters]
    factor = parameters.get("factor", 1.0)
    if any(t != "default" and not (t == "linear" and factor == 1) for t in types):
        raise EmbeddingGemmaError(
            f"config.json: expected rope_type 'default' for {kind}, got {types!r:.60} with factor "
            f"{factor!r:.20}"
        )


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
    return sliding_window // 2
