"""Rows of floats to packed rows: MLX's own ways, and ggml's grids in MLX's affine layout."""

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_embeddinggemma.errors import EmbeddingGemmaError

from .recipes import Format

BLOCK = 32  # weights that share a scale in ggml's q4_0 and q8_0
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}

Floats = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8]


def pack(rows: mx.array, chosen: Format, dtype: str) -> dict[str, mx.array]:
    """Packs rows.

    Args:
        rows: (n, inputs) float32, inputs a multiple of the group size.
        chosen: how.
        dtype: of affine scales and biases. The weights are rounded to it first, as mlx-lm does, so
            that both give the same bytes.

    Returns:
        "weight" (n, inputs * bits / 32) uint32, "scales" and for affine "biases" (n, groups).
    """
    if chosen.kind in GRIDS:
        return grid(*GRIDS[chosen.kind](np.array(rows)), chosen.bits)
    packed = mx.quantize(rows.astype(DTYPES[dtype]), **chosen.settings)
    return dict(zip(("weight", "scales", "biases"), packed, strict=False))


def grid(levels: Levels, d: npt.NDArray[Any], bits: int) -> dict[str, mx.array]:
    """Ggml's blocks in MLX's affine layout, exactly: d (q - z) = d q + (-z d), z = 2^(bits - 1).

    d has 11 significant bits and q at most 8: float32 holds every product and every sum, so nothing
    is rounded. With 16-bit scales it would be; float32 costs one bit a weight more.

    Args:
        levels: (n, inputs) q, 0 to 2^bits - 1.
        d: (n, inputs / 32) scales of the blocks.
        bits: 4 or 8.
    """
    if bits == 4:
        levels = levels[:, 0::2] + levels[:, 1::2] * np.uint8(16)
    scales = d.astype(np.float32)
    return {
        "weight": mx.array(np.ascontiguousarray(levels).view("<u4")),
        "scales": mx.array(scales),
        "biases": mx.array(scales * np.float32(-(2 ** (bits - 1)))),
    }


def q4_0(rows: Floats) -> tuple[Levels, npt.NDArray[np.float16]]:
    """Ggml's q4_0: d = (the value of largest magnitude) / -8, q = floor(w / d + 8.5) up to 15.

    Step by step as `gguf.quants` computes it since gguf 0.18, and ggml's C where no multiply-add is
    fused: product and sum in float32, each rounded, so that 6.99999989 is 7; the rounding of d to
    float16 only after q was found.
    """
    blocks = rows.reshape(-1, BLOCK)
    largest = np.abs(blocks).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(blocks, largest, axis=1) / np.float32(-8)
    levels = blocks * _inverse(d) + np.float32(8.5)
    return _blocks(np.minimum(levels, 15).astype(np.uint8), d, rows.shape)


def q8_0(rows: Floats) -> tuple[Levels, npt.NDArray[np.float16]]:
    """Ggml's q8_0: d = (largest magnitude) / 127, q = w / d rounded half away from zero, + 128."""
    blocks = rows.reshape(-1, BLOCK)
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    ratio = blocks * _inverse(d)
    size = np.abs(ratio)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))
    return _blocks((np.copysign(whole, ratio) + 128).astype(np.uint8), d, rows.shape)


GRIDS = {"q4_0": q4_0, "q8_0": q8_0}


def on_grid(rows: Floats) -> str | None:
    """Which of ggml's grids the rows lie on, if any: "q4_0" or "q8_0".

    A block fits where every w / d is whole to within 0.05, which leaves room for a d that was never
    rounded to float16; of other weights next to no block fits.
    """
    blocks = rows.reshape(-1, BLOCK).astype(np.float64)
    blocks = blocks[np.abs(blocks).max(axis=1) > 0]
    if not len(blocks):
        return None
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    for name, steps in (("q4_0", -8), ("q8_0", 127)):
        with np.errstate(invalid="ignore"):  # infinite weights: on no grid, and refused elsewhere
            ratio = blocks / (largest / steps)
            if np.abs(ratio - np.round(ratio)).max() < 0.05:
                return name
    return None


def _inverse(d: Floats) -> Floats:
    """1 / d, and 0 where that is no number: d is 0, or so small that float16 makes it 0 anyway."""
    if np.abs(d).max(initial=0) >= 65_520:  # from here on float16 rounds to infinity
        raise EmbeddingGemmaError(
            f"a block's scale would be {np.abs(d).max():.3g}: ggml's grids keep it in float16, "
            "which ends at 65,504; use an affine recipe"
        )
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _blocks(
    levels: Levels, d: Floats, shape: tuple[int, ...]
) -> tuple[Levels, npt.NDArray[np.float16]]:
    return levels.reshape(shape), d.astype(np.float16).reshape(shape[0], -1)
