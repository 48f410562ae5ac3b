"""Ggml's grids, level by level and scale by scale as the gguf package rounds to them."""

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.convert.formats import GRIDS, grid, q4_0

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.finetune import grids

BLOCK = 32


def ordinary(rng, n):
    """Weights as networks have them: bell-shaped, rows of unlike scale."""
    return rng.standard_normal((n, BLOCK)) * np.exp(rng.normal(-3, 1.5, (n, 1)))


def heavy(rng, n):
    """One weight in each block far from the rest."""
    return rng.standard_t(2, (n, BLOCK)) * 0.02


def halves(rng, n):
    """Multiples of a half of the block's scale: every weight between two levels, or on one."""
    return rng.integers(-16, 17, (n, BLOCK)) * np.float32(0.5) * np.exp2(rng.integers(-12, 3, (n, 1)))


def nearly_halves(rng, n):
    """The same a few bits off, where product and sum decide."""
    return (
        halves(rng, n) * (1 + rng.integers(-3, 4, (n, BLOCK)) * 2.0**-23) * rng.uniform(0.5, 2, (n, 1))
    )


def both_signs(rng, n):
    """The largest magnitude comes twice, once of each sign: the first one sets the scale."""
    rows = rng.standard_normal((n, BLOCK))
    places = rng.permuted(np.tile(np.arange(BLOCK), (n, 1)), axis=1)[:, :2]
    np.put_along_axis(rows, places, np.array([[5.0, -5.0]]), axis=1)
    return rows * np.exp(rng.normal(-3, 1.5, (n, 1)))


def trained(rng, n):
    """On a grid already, as quantization-aware checkpoints are, its scale in float16 or not."""
    d = np.exp(rng.normal(-6, 1, (n, 1))).astype(np.float32)
    d[::2] = d[::2].astype(np.float16)
    return rng.integers(-8, 8, (n, BLOCK)).astype(np.float32) * d


def sixteen_bits(rng, n):
    """Rounded to bfloat16, where ties abound."""
    bits = ordinary(rng, n).astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def vanishing(rng, n):
    """Zeros, and scales down to where float16 and float32 end."""
    rows = rng.standard_normal((n, BLOCK)) * 10.0 ** rng.uniform(-45, -4, (n, 1))
    rows[::7] = 0
    rows[1::7, ::3] = -0.0
    return rows


def huge(rng, n):
    """Up to the largest scale that float16 holds."""
    rows = rng.uniform(-1, 1, (n, BLOCK)) * 10.0 ** rng.uniform(2, 5.7, (n, 1))
    return np.clip(rows, -8 * 65_500, 8 * 65_500)


# The largest weight of a block, and the one that falls between.
SEEN = np.array([float.fromhex("-0x1.265ac0p-7"), float.fromhex("-0x1.b98822p-10")], np.float32)
KINDS = (ordinary, heavy, halves, nearly_halves, both_signs, trained, sixteen_bits, vanishing, huge)


def differing(name: str, rows: np.ndarray) -> int:
    """Levels, and bytes of scales, that are not the gguf package's."""
    with np.errstate(all="ignore"):
        theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name.upper()])
    levels, d = GRIDS[name](rows)
    theirs = theirs.reshape(len(rows), -1)
    q = theirs[:, 2:]
    expected = q ^ np.uint8(0x80) if name == "q8_0" else np.concatenate([q & 15, q >> 4], axis=1)
    # Where 1 / d is infinite, what gguf makes of it is up to the machine.
    defined = np.abs(rows).max(axis=1) > 127 * 3e-39
    scales = np.ascontiguousarray(theirs[:, :2]) != d.view(np.uint8).reshape(len(rows), 2)
    return int((levels != expected)[defined].sum() + scales.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_levels_and_scales_are_the_gguf_packages(name, kind):
    rows = kind(np.random.default_rng(7), 20_000).astype(np.float32)
    assert differing(name, rows) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_training_rounds_to_the_same_weights(name, kind):
    rows = kind(np.random.default_rng(8), 5_000).astype(np.float32)
    levels, d = GRIDS[name](rows)
    bits = int(name[1])
    packed = grid(levels, d, bits)
    written = mx.dequantize(packed["weight"], packed["scales"], packed["biases"], 32, bits)
    np.testing.assert_array_equal(np.array(getattr(grids, name)(mx.array(rows))), np.array(written))


def test_a_sum_just_below_a_whole_number_is_that_number_in_float32():
    """From layers.23.mlp.gate_proj of a full-size checkpoint: 6.99999989 in float64, 7 in float32."""
    rows = np.zeros((1, BLOCK), np.float32)
    rows[0, :2] = SEEN
    d = SEEN[0] / np.float32(-8)
    exact = np.float64(SEEN[1]) * np.float64(np.float32(1) / d) + 8.5
    assert exact < 7 and np.float32(exact) == 7
    assert q4_0(rows)[0][0, 1] == 7
    assert differing("q4_0", rows) == 0
    assert np.array(grids.q4_0(mx.array(rows)))[0, 1] == -np.float32(np.float16(d))


@pytest.mark.parametrize("name", GRIDS)
def test_a_scale_that_float16_cannot_hold_is_refused(name):
    rows = np.full((1, BLOCK), 1e8, np.float32)
    with pytest.raises(EmbeddingGemmaError, match="scale would be .* ends at 65,504"):
        GRIDS[name](rows)
