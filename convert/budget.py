"""Bits for each matrix under a limit for the whole: most where an error shows most."""

import math
from collections.abc import Mapping
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_embeddinggemma import layout

from .formats import pack
from .recipes import BITS, GROUP_SIZES, Format, Recipe, affine
from .sensitivity import Hessian
from .sources import Source

# The smallest first. Where an error does not show, 2 bits do, and leave more to others.
CHOICES = tuple(affine(bits, size) for bits in BITS for size in sorted(GROUP_SIZES, reverse=True))
ROWS = 256  # of a matrix, evenly spread, on which a format is judged


def within_budget(
    recipe: Recipe, source: Source, hessians: Mapping[str, Hessian], dtype: str
) -> Recipe:
    """The recipe with a format for each matrix, the whole within `recipe.budget` bits a weight.

    From the smallest formats on, the step that saves the most error a bit is taken while one fits.
    Matrices that the network stores as one get one format.
    """
    assert recipe.budget is not None
    scale_bits = 16 if dtype == "bfloat16" else 32
    sizes = {
        path: sum(math.prod(source.matrices[part].shape) for part in layout.parts(path))
        for path in hessians
    }
    norms = sum(math.prod(norm.shape) for norm in source.norms.values())
    left = recipe.budget * (sum(sizes.values()) + norms) - scale_bits * norms
    options = {}
    for path, hessian in hessians.items():
        fitting = [f for f in CHOICES if len(hessian) % f.group_size == 0]
        errors = _errors(path, source, hessian, fitting, dtype)
        options[path] = [
            (sizes[path] * (f.bits + 2 * scale_bits / f.group_size), errors[f], f) for f in fitting
        ]
    taken = {path: found[0] for path, found in options.items() if found}
    left -= sum(bits for bits, _, _ in taken.values())
    left -= sum(sizes[path] * scale_bits for path in hessians.keys() - taken.keys())
    while True:
        steps = [
            ((taken[path][1] - error) / (bits - taken[path][0]), path, (bits, error, chosen))
            for path, found in options.items()
            for bits, error, chosen in found
            if path in taken and taken[path][0] < bits <= taken[path][0] + left
        ]
        gain, path, step = max(steps, default=(0, "", None), key=lambda s: s[0])
        if step is None or not gain > 0:
            break
        left -= step[0] - taken[path][0]
        taken[path] = step
    rules = tuple((part, f) for path, (_, _, f) in taken.items() for part in layout.parts(path))
    return replace(recipe, rules=(*rules, ("*", None)))


def _errors(
    path: str, source: Source, hessian: Hessian, formats: list[Format], dtype: str
) -> dict[Format, float]:
    """Mean e^T H e of plainly rounded rows."""
    matrices = [source.matrices[part] for part in layout.parts(path)]
    picked = []
    for matrix in matrices:
        step = max(1, matrix.shape[0] * len(matrices) // ROWS)
        picked += [matrix.rows(i, i + 1) for i in range(0, matrix.shape[0], step)]
    rows, h = mx.concatenate(picked), mx.array(hessian)
    errors = {}
    for chosen in formats:
        packed = pack(rows, chosen, dtype)
        scales, biases = (packed[n].astype(mx.float32) for n in ("scales", "biases"))
        e = rows - mx.dequantize(packed["weight"], scales, biases, **chosen.settings)
        errors[chosen] = float(np.array(((e @ h) * e).sum(axis=1).mean()))
    return errors
