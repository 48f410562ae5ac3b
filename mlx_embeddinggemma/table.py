"""The vocabulary table: 65 % of the parameters, of which a text touches a few rows."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.packed import unpack
from mlx_embeddinggemma.tensors import Tensor


class VocabularyTable:
    """Embedding rows by token id, read from the checkpoint's file when they are needed.

    Args:
        tensors: "weight", and "scales" and maybe "biases" where the table is packed.
        quantization: `group_size`, `bits`, `mode` of a packed table, else empty.
        dtype: of the rows handed out.
    """

    def __init__(self, tensors: Mapping[str, Tensor], quantization: Mapping[str, Any], dtype: mx.Dtype):
        self._tensors = dict(tensors)
        self._quantization = dict(quantization)
        self._dtype = dtype

    def __call__(self, ids: np.ndarray) -> mx.array:
        """(B, L) token ids to (B, L, D) rows."""
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = {name: tensor.rows(unique) for name, tensor in self._tensors.items()}
        weight = rows["weight"]
        if self._quantization:
            weight = unpack(weight, rows["scales"], rows.get("biases"), **self._quantization)
        return weight.astype(self._dtype)[mx.array(inverse.reshape(ids.shape))]
