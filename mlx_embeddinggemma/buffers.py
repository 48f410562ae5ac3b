"""What other tools write beside the weights, and no vector depends on.

The head of the language model takes no part in an encoder, tied to the table or not. Whole numbers
count positions or mask them: no weight of this network is one. Rotary frequencies and the scale of the
embeddings are computed from config.json, here and in transformers, which once stored them too; one that
says otherwise belongs to another network, and is refused rather than passed over.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_embeddinggemma.config import Config
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.tensors import FLOATS, Tensor

HEAD = re.compile(r"(.+\.)?lm_head\.\w+")
COUNTS = ("I64", "I32", "BOOL")
WEIGHTS = (".weight", ".scales", ".biases")
SCALE = re.compile(r"(embed_tokens\.)?embed_scale")
# One for all layers, one for each type (`_local` in older files), or one a layer.
ROTARY = re.compile(
    r"(?:layers\.(?P<layer>[0-9]{1,4})\.self_attn\.)?rotary_emb(?P<local>_local)?\."
    r"(?:(?P<kind>full_attention|sliding_attention)_)?(?:original_)?inv_freq"
)


def without_buffers(tensors: Mapping[str, Tensor], config: Config, folder: Path) -> dict[str, Tensor]:
    """The tensors that the network reads.

    Raises:
        EmbeddingGemmaError: a buffer holds other numbers than config.json leads to.
    """
    kept = {}
    for name, tensor in tensors.items():
        expected = _expected(name, config)
        if expected is not None:
            _check(name, tensor, expected, folder)
        elif not HEAD.fullmatch(name) and (tensor.dtype not in COUNTS or name.endswith(WEIGHTS)):
            kept[name] = tensor
    return kept


def _expected(name: str, config: Config) -> npt.NDArray[np.float64] | None:
    if SCALE.fullmatch(name):
        return np.array(config.hidden_size**0.5)
    if (match := ROTARY.fullmatch(name)) is None:
        return None
    kind = match["kind"] or ("sliding_attention" if match["local"] else "full_attention")
    if match["layer"]:
        if (layer := int(match["layer"])) >= config.num_hidden_layers:
            return None
        kind = config.layer_types[layer]
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    return np.asarray(config.rope_theta[kind] ** -exponents)


def _check(name: str, tensor: Tensor, expected: npt.NDArray[np.float64], folder: Path) -> None:
    close = False
    if tensor.dtype in FLOATS and math.prod(tensor.shape) == expected.size:
        stored = np.array(tensor.read().astype(mx.float32)).reshape(expected.shape)
        # 16 bits keep two to three digits, and of the smallest frequencies in float16 not even these.
        error = 2**-7 if tensor.dtype.endswith("16") else 1e-5
        close = np.allclose(stored, expected, rtol=error, atol=1e-7)
    if not close:
        raise EmbeddingGemmaError(
            f"{folder}: {name!r:.80} is not what config.json leads to: expected {expected.size} values "
            f"from {expected.flat[0]:.6g} to {expected.flat[-1]:.6g}; remove it, or correct config.json"
        )
