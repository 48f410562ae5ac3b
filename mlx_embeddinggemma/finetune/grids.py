"""Weights as the converter will round them, for training that knows of it.

The forward pass sees rounded weights, the gradient passes straight through to the floats beneath
(arXiv 1308.3432); in ggml's grids the weight that sets its block's scale learns along the scale too
(as in arXiv 1902.08153). The grids are the converter's, bit for bit: MLX's own in bfloat16 for "4bit",
"8bit" and "mixed", ggml's for "q4_0" and "q8_0" (arithmetic in `convert/formats.py`); "fp32" has none.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import mlx.core as mx

from mlx_embeddinggemma.errors import EmbeddingGemmaError

Grid = Callable[[mx.array], mx.array]
BLOCK = 32  # weights that share a scale in ggml's formats
RECIPES = ("fp32", "4bit", "8bit", "mixed", "q4_0", "q8_0")


def affine(weight: mx.array, bits: int) -> mx.array:
    """MLX's own grid in groups of 64, from and to bfloat16 as `convert` writes it."""
    packed = mx.quantize(weight.astype(mx.bfloat16), group_size=64, bits=bits)
    return mx.dequantize(*packed, group_size=64, bits=bits).astype(mx.float32)


def q4_0(weight: mx.array) -> mx.array:
    """Ggml's q4_0: d = (the value of largest magnitude) / -8, levels floor(w / d + 8.5) up to 15."""
    blocks = weight.reshape(-1, BLOCK)
    largest = mx.abs(blocks).argmax(axis=1, keepdims=True)
    d = mx.take_along_axis(blocks, largest, axis=1) / -8
    # Product and sum are rounded each, as in `convert/formats.py`. A GPU may fuse them, and there one
    # weight in some million differs.
    levels = mx.minimum(mx.floor(blocks * _inverse(d) + 8.5), 15.0)
    return ((levels - 8) * _half(d)).reshape(weight.shape)


def q8_0(weight: mx.array) -> mx.array:
    """Ggml's q8_0: d = (largest magnitude) / 127, levels w / d rounded half away from zero."""
    blocks = weight.reshape(-1, BLOCK)
    d = mx.abs(blocks).max(axis=1, keepdims=True) / 127
    ratio = blocks * _inverse(d)
    size = mx.abs(ratio)
    whole = mx.floor(size)
    whole = whole + mx.floor(2 * (size - whole))
    return (mx.sign(ratio) * whole * _half(d)).reshape(weight.shape)


def _half(d: mx.array) -> mx.array:
    return d.astype(mx.float16).astype(mx.float32)


def _inverse(d: mx.array) -> mx.array:
    """1 / d, and 0 where d is 0 or so small that float16 makes it 0."""
    usable = _half(d) != 0
    return mx.where(usable, 1 / mx.where(usable, d, 1), 0)


def grid_of(recipe: str, path: str, inputs: int) -> Grid | None:
    """How `recipe` rounds the matrix at `path`, None if it leaves it as floats.

    Args:
        recipe: of `RECIPES`.
        path: as in `layout`.
        inputs: length of its rows; the converter packs those that divide into groups.
    """
    if recipe not in RECIPES:
        raise EmbeddingGemmaError(f"expected quantize {', '.join(RECIPES)}, got {recipe!r}")
    if recipe == "fp32":
        return None
    if recipe in ("q4_0", "q8_0"):
        return None if inputs % BLOCK else through_scale({"q4_0": q4_0, "q8_0": q8_0}[recipe])
    bits = 8 if recipe == "8bit" or (recipe == "mixed" and ".self_attn." in path) else 4
    return None if inputs % 64 else straight_through(partial(affine, bits=bits))


def through_scale(grid: Grid) -> Grid:
    """A ggml grid with the derivative of levels that stay and a scale that moves.

    With levels r and the scale d = (largest weight m) / constant, r d grows with d by r, of which the
    identity already gives w / d: what it leaves out, the sum of (r d - w) dL/dw over m, is m's. So one
    large weight, which coarsens its whole block, learns to be smaller.
    """
    rounded = mx.custom_function(grid)

    @rounded.vjp
    def vjp(weight: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        w, slope, error = (x.reshape(-1, BLOCK) for x in (weight, cotangent, output - weight))
        largest = mx.abs(w).argmax(axis=1, keepdims=True)
        m = mx.take_along_axis(w, largest, axis=1)
        along = (error * slope).sum(axis=1, keepdims=True) * _inverse(m)
        return (slope + mx.where(mx.arange(BLOCK) == largest, along, 0)).reshape(weight.shape)

    return cast(Grid, rounded)


def straight_through(grid: Grid) -> Grid:
    """The grid with the derivative of the identity."""
    rounded = mx.custom_function(grid)

    @rounded.vjp
    def vjp(weight: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent

    return cast(Grid, rounded)
