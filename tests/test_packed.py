"""Packed weights come out as the floats that their codes, scales and biases stand for."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_embeddinggemma.packed import unpack


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_float32_scales_give_what_mlx_gives(machine, bits, group_size):
    weight = mx.random.normal((96, 384), key=mx.random.key(bits))
    packed = mx.quantize(weight, group_size=group_size, bits=bits)
    settings = {"group_size": group_size, "bits": bits, "mode": "affine"}
    expected = np.array(mx.dequantize(*packed, **settings))
    # MLX may fuse the product and the sum.
    np.testing.assert_allclose(np.array(unpack(*packed, **settings)), expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_bfloat16_scales_are_not_rounded_again(machine, bits):
    weight = mx.random.normal((96, 384), key=mx.random.key(bits)).astype(mx.bfloat16)
    settings = {"group_size": 64, "bits": bits, "mode": "affine"}
    codes, scales, biases = mx.quantize(weight, group_size=64, bits=bits)
    exact = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), **settings)
    unpacked = unpack(codes, scales, biases, **settings)
    np.testing.assert_allclose(np.array(unpacked), np.array(exact), rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("mode", "bits", "size"), [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
)
def test_other_modes_are_mlx_s(mode, bits, size):
    weight = mx.random.normal((96, 384), key=mx.random.key(bits))
    settings = {"group_size": size, "bits": bits, "mode": mode}
    codes, scales = mx.quantize(weight, **settings)
    expected = mx.dequantize(codes, scales, **settings)
    assert mx.array_equal(unpack(codes, scales, None, **settings), expected)
