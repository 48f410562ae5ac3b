"""The grids that training rounds to are the converter's."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddinggemma.convert.formats import pack
from mlx_embeddinggemma.convert.recipes import RECIPES

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.finetune.grids import grid_of

PATHS = ["embed_tokens", "layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "dense.0"]


def weights() -> np.ndarray:
    """Ordinary rows, ties, zeros, and scales that vanish in float16."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((64, 256)).astype(np.float32) * np.exp(rng.normal(0, 2, (64, 1)))
    rows[0] = np.tile(np.arange(-16, 16) / 2, 8)
    rows[1] = 0
    rows[2] *= 1e-9
    return rows.astype(np.float32)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("recipe", ["4bit", "8bit", "mixed", "q4_0", "q8_0"])
def test_a_rounded_weight_is_what_the_converter_writes(recipe, path):
    rows = mx.array(weights())
    chosen = RECIPES[recipe].format_of(path)
    packed = pack(rows, chosen, RECIPES[recipe].dtype or "bfloat16")
    written = mx.dequantize(
        packed["weight"], packed["scales"], packed["biases"], **chosen.settings
    ).astype(mx.float32)
    rounded = grid_of(recipe, path, 256)(rows)
    assert np.array_equal(np.array(rounded), np.array(written))
    assert not np.array_equal(np.array(rounded), weights())


def slope_of(recipe: str, rows: np.ndarray, factor: np.ndarray) -> np.ndarray:
    grid = grid_of(recipe, "layers.0.mlp.up_proj", 256)
    return np.array(mx.grad(lambda w: (grid(w) * mx.array(factor)).sum())(mx.array(rows)))


@pytest.mark.parametrize("recipe", ["mixed", "4bit", "8bit"])
def test_the_gradient_passes_straight_through(recipe):
    assert np.array_equal(slope_of(recipe, weights(), weights() ** 2), weights() ** 2)


@pytest.mark.parametrize("recipe", ["q4_0", "q8_0"])
def test_the_gradient_passes_straight_through_but_to_the_weight_that_sets_the_scale(recipe):
    """Where a block is stretched, its grid is: along the block the derivative is exact."""
    rows, factor = weights()[3:], weights()[3:] ** 2
    slope = slope_of(recipe, rows, factor)
    blocks, largest = rows.reshape(-1, 32), np.abs(rows.reshape(-1, 32)).argmax(axis=1)
    others = np.arange(32) != largest[:, None]
    assert np.array_equal(slope.reshape(-1, 32)[others], factor.reshape(-1, 32)[others])
    rounded = np.array(grid_of(recipe, "layers.0.mlp.up_proj", 256)(mx.array(rows))).reshape(-1, 32)
    along = (slope.reshape(-1, 32) * blocks).sum(axis=1)
    assert np.allclose(along, (rounded * factor.reshape(-1, 32)).sum(axis=1), rtol=1e-3, atol=1e-4)


def test_rows_that_do_not_divide_into_groups_stay_floats_as_in_the_converter():
    assert grid_of("4bit", "dense.0", 96) is None
    assert grid_of("q4_0", "dense.0", 96) is not None
    assert grid_of("q4_0", "dense.0", 80) is None


def test_an_unknown_grid_is_refused():
    with pytest.raises(EmbeddingGemmaError, match="expected quantize fp32, 4bit, .* got 'int3'"):
        grid_of("int3", "dense.0", 64)
