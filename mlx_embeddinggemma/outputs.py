"""Vectors as the arrays that the caller asked for: numpy's, MLX's or torch's."""

import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.given import flag

if TYPE_CHECKING:
    from torch import Tensor

Vector = np.ndarray[tuple[int], np.dtype[Any]]
Matrix = np.ndarray[tuple[int, int], np.dtype[Any]]
Numpy = Vector | Matrix | list[Matrix]
Output: TypeAlias = "Numpy | mx.array | list[mx.array] | Tensor | list[Tensor]"
Form = Literal["numpy", "mlx", "tensor", "tensors"]


def form_of(return_mlx: bool, convert_to_tensor: bool, convert_to_numpy: bool, single: bool) -> Form:
    """What the flags ask for, as in sentence-transformers.

    A tensor wins over numpy; neither of them is a list of tensors, or one for a `single` text.

    Raises:
        TypeError: one is neither True nor False.
        EmbeddingGemmaError: two of them at once, or torch's arrays without torch.
    """
    flag("return_mlx", return_mlx)
    flag("convert_to_tensor", convert_to_tensor)
    flag("convert_to_numpy", convert_to_numpy)
    if return_mlx and convert_to_tensor:
        raise EmbeddingGemmaError("expected return_mlx or convert_to_tensor, got both")
    if return_mlx:
        return "mlx"
    if convert_to_numpy and not convert_to_tensor:
        return "numpy"
    try:
        import torch  # noqa: F401
    except ImportError:
        asked = "convert_to_tensor=True" if convert_to_tensor else "convert_to_numpy=False"
        raise EmbeddingGemmaError(
            f"{asked} gives torch's tensors, and torch is not installed: leave it out for numpy's "
            "arrays, or take return_mlx=True for MLX's"
        ) from None
    return "tensor" if convert_to_tensor or single else "tensors"


def converted(results: Numpy, form: Form) -> Output:
    """A vector, a matrix or a list of matrices in another library's arrays."""
    if form == "numpy":
        return results
    if form == "mlx":
        return [mx.array(x) for x in results] if isinstance(results, list) else mx.array(results)
    import torch

    if isinstance(results, list):
        return [torch.from_numpy(x) for x in results]
    tensor = torch.from_numpy(results)
    return list(tensor) if form == "tensors" else tensor


def as_given(scores: np.ndarray, *sides: object) -> "np.ndarray | Tensor":
    """Scores of vectors in their own kind: torch's where a side, or the first of it, is a tensor."""
    torch = sys.modules.get("torch")
    firsts = [side[0] if isinstance(side, list | tuple) and side else side for side in sides]
    if torch and any(isinstance(first, torch.Tensor) for first in firsts):
        tensor: Tensor = torch.from_numpy(scores)
        return tensor
    return scores
