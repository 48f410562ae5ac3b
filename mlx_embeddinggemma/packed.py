"""Packed weights to floats."""

from typing import Any

import mlx.core as mx

from mlx_embeddinggemma import runtime


def unpack(
    weight: mx.array, scales: mx.array, biases: mx.array | None = None, **settings: Any
) -> mx.array:
    """The floats (rows, inputs) that packed tensors stand for.

    Args:
        weight: (rows, inputs * bits / 32) uint32, the first code in the lowest bits.
        scales: (rows, groups).
        biases: (rows, groups), in the affine mode.
        **settings: group_size, bits and mode, as in config.json.

    Returns:
        In the affine mode float32: code * scale + bias, rounded nowhere else, where `mx.dequantize`
        would round to the scales' dtype. In other modes what that returns.
    """
    if biases is None:
        return mx.dequantize(weight, scales, **settings)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    bits = settings["bits"]
    if runtime.on_gpu() or bits not in (4, 8):
        return mx.dequantize(weight, scales, biases, **settings)
    # MLX's CPU kernel is scalar, 2.1 to 3.8 ns a weight; arithmetic on bytes is not, 0.7 to 1.6.
    codes = weight.view(mx.uint8)
    if bits == 4:
        codes = mx.stack([codes & mx.array(15, mx.uint8), codes >> mx.array(4, mx.uint8)], axis=-1)
    grouped = codes.astype(mx.float32).reshape(*scales.shape, -1)
    return (grouped * scales[..., None] + biases[..., None]).reshape(len(scales), -1)
