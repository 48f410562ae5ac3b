"""What config.json leaves out, or says in an older way, is what transformers takes for it, or
refused by name.

The truth is transformers' own `Gemma3TextConfig`, and its vectors.
"""

import json
import warnings

import checkpoints
import pytest
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError
from mlx_embeddinggemma.config import Config

ABSENT = object()
DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def raw(**changes) -> dict:
    """A config.json; a value of None is null, of ABSENT no key."""
    changed = json.loads(json.dumps(checkpoints.config())) | changes
    return {key: value for key, value in changed.items() if value is not ABSENT}


def transformers_config(config: dict) -> dict:
    """The same network as transformers reads it, in our words."""
    gemma = pytest.importorskip("transformers.models.gemma3.configuration_gemma3")
    theirs = gemma.Gemma3TextConfig.from_dict(json.loads(json.dumps(config)))
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    more = ("num_key_value_heads", "head_dim", "rms_norm_eps", "query_pre_attn_scalar")
    assert theirs.use_bidirectional_attention
    return {name: getattr(theirs, name) for name in (*sizes, *more, "max_position_embeddings")} | {
        "layer_types": tuple(theirs.layer_types),
        "rope_theta": {kind: rope["rope_theta"] for kind, rope in theirs.rope_parameters.items()},
        "window_radius": theirs.sliding_window - 1,  # theirs is the first distance not seen
        "scaled": [
            rope["rope_type"] for rope in theirs.rope_parameters.values() if rope.get("factor", 1) != 1
        ],
    }


def ours(config: dict) -> dict:
    read = Config.from_dict(config)
    return {k: v for k, v in vars(read).items() if k != "quantization"} | {
        "rope_theta": dict(read.rope_theta),
        "scaled": [],
    }


# transformers fills these in for a network of another size, or (the last) for a causal one.
NEEDED = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "sliding_window",
    "use_bidirectional_attention",
}  # fmt: skip
# No number can stand for null here, to transformers neither.
NO_NULL = NEEDED | {
    "head_dim", "rms_norm_eps", "query_pre_attn_scalar", "hidden_activation", "attention_bias",
    "rope_theta", "rope_local_base_freq",
}  # fmt: skip


@pytest.mark.parametrize("value", [ABSENT, None], ids=["absent", "null"])
@pytest.mark.parametrize("key", sorted(checkpoints.config().keys() - {"use_cache"}))  # not a generator
def test_each_key_left_out_is_filled_in_as_transformers_does_or_named(key, value):
    # 256 is the default, and of EmbeddingGemma: the tiny one has 64.
    config = raw(head_dim=256, query_pre_attn_scalar=256) | {key: value}
    config = {k: v for k, v in config.items() if v is not ABSENT}
    if key in (NEEDED if value is ABSENT else NO_NULL):
        with pytest.raises(EmbeddingGemmaError, match=key):
            Config.from_dict(config)
    else:
        assert ours(config) == transformers_config(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ABSENT, "sliding_window_pattern": 3},
        {"layer_types": None, "_sliding_window_pattern": 3},  # written by transformers, never read
        {"layer_types": ABSENT, "sliding_window_pattern": 2, "_sliding_window_pattern": 5},
        {"sliding_window_pattern": 3},
        {"rope_scaling": {}},
        {"rope_scaling": DEFAULT},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 1.0}},
        {"rope_scaling": {"rope_theta": 5e5}},
        {"rope_parameters": {}},
        {"rope_parameters": {"full_attention": DEFAULT | {"rope_theta": 5e5}}},
        {"rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 5e3}}},
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}, "rope_theta": 7e5},
        {"rope_parameters": {"full_attention": {"type": "default", "rope_theta": 5e5}}},
        {"rope_parameters": {}, "rope_theta": ABSENT, "rope_local_base_freq": ABSENT},
        {
            "rope_parameters": {
                "full_attention": DEFAULT | {"rope_theta": 1e6},
                "sliding_attention": DEFAULT | {"rope_theta": 1e4},
            },
            "rope_theta": None,
            "rope_local_base_freq": None,
        },
        {"partial_rotary_factor": 0.5},  # Gemma 3 turns all dimensions all the same
        {"final_logit_softcapping": 30.0},
        {"rope_theta": 1_000_000},
        {"tie_word_embeddings": False, "attention_dropout": 0.5, "cache_implementation": "hybrid"},
    ],
    ids=str,
)
def test_what_transformers_understands_is_understood_alike(changes):
    config = raw(**changes)
    assert ours(config) == transformers_config(config)


REFUSED = [
    *(({"use_bidirectional_attention": value}, "use_bidirectional_attention true, got")
      for value in (False, 0, 1, 1.0, "true", "false", "all", [0], [], {})),
    *(({"hidden_size": value}, "hidden_size an integer .* got")
      for value in (True, "192", 192.0, 192.5, [192], {}, 0, -1, 2**31, 10**400)),
    *(({"sliding_window": value}, "sliding_window an integer from 2")
      for value in (512.0, "512", 1, 0, -4, True)),
    *(({"rms_norm_eps": value}, "rms_norm_eps a number above 0")
      for value in ("1e-6", True, 0, -1, [], 10**400)),
    *(({"rope_theta": value}, "rope_theta a number above 0") for value in ("1e6", True, 0, None)),
    *(({"layer_types": None, "sliding_window_pattern": value}, "sliding_window_pattern an integer")
      for value in (None, True, "3", 0, -6, 3.5)),
    *(({"layer_types": value}, "expected 6 layer_types")
      for value in ([], "sliding", ["sliding"] * 6, [["full_attention"]] * 6, {}, 6, [None] * 6)),
    ({"layer_types": [1] * 10**6}, "expected 6 layer_types"),
    ({"rope_scaling": LINEAR}, "rope_type 'default' for full_attention"),
    ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_type 'default' for full_attention"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 1.0}}, "got .'yarn'"),
    ({"rope_scaling": 8}, "rope_scaling an object, got 8"),
    ({"rope_scaling": []}, "rope_scaling an object"),
    ({"rope_parameters": {"full_attention": {"type": "linear", "factor": 8.0}}},
     "got .'linear'. with factor 8"),
    ({"rope_parameters": {"sliding_attention": LINEAR}}, "for sliding_attention, got .'linear'"),
    ({"rope_parameters": {"full_attention": {"rope_type": None}}}, "got .None"),
    ({"rope_parameters": {"full_attention": {"rope_theta": None}}},
     "rope_theta a number above 0, got None"),
    ({"rope_parameters": DEFAULT | {"rope_theta": 1e6}},
     "rope_parameters for full_attention and sliding"),
    ({"rope_parameters": [1]}, "rope_parameters an object"),
    ({"rope_parameters": {"full_attention": 1e6}}, "full_attention an object, got 1000000.0"),
    ({"attention_bias": True}, "attention_bias False, got True"),
    ({"attn_logit_softcapping": 0.0}, "attn_logit_softcapping None, got 0.0"),
    ({"hidden_activation": "gelu"}, "hidden_activation 'gelu_pytorch_tanh', got 'gelu'"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}},
     "got quant_method 'bitsandbytes'.*dequantized"),
    ({"quantization_config": 4}, "quantization_config an object"),
    ({"model_type": "x" * 10**6}, "got 'xxx"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), REFUSED, ids=[str(c)[:60] for c, _ in REFUSED])
def test_what_would_change_the_network_is_refused_by_name(changes, says):
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        Config.from_dict(raw(**changes))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": None, "_sliding_window_pattern": 2, "sliding_window_pattern": 3},
        {"layer_types": None, "sliding_window": 16, "_sliding_window_pattern": 2},
        {"rope_scaling": {"rope_type": "linear", "factor": 1.0}, "rms_norm_eps": None},
        {"rope_parameters": {"full_attention": {"type": "default", "rope_theta": 5e3}}},
    ],
    ids=str,
)
def test_vectors_are_transformers_own(changes, tmp_path):
    reference = pytest.importorskip("reference")
    folder = checkpoints.edit_config(
        checkpoints.write_tiny(tmp_path / "source"), tmp_path / "m", **changes
    )
    model, texts = EmbeddingGemma(folder), ["the thin thing", "in the there " * 30]
    expected = reference.vectors(*reference.load(folder), model.tokenize(texts))
    assert_near(model.encode(texts), expected)


def test_a_networks_own_sizes_are_not_guessed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EmbeddingGemmaError, match="has no 'hidden_size'"):
            Config.from_dict(raw(hidden_size=ABSENT))
