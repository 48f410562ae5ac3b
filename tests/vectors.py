"""How vectors are compared: the promise about rounding, in one place.

The same checkpoint, texts and batches give the same bits on one machine. A text in another batch, or
through another but equal road (a packed copy expanded, float64 weights), may round differently.
"""

import numpy as np
import numpy.typing as npt

UNIT = 2e-6  # of a unit vector's component: two right float32 computations


def assert_near(found: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float = UNIT) -> None:
    """Vectors that are the same but for rounding."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


def assert_same_bits(found: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """Vectors of the same checkpoint, texts and batches."""
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
