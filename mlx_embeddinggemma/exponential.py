"""Powers of two in plain arithmetic: MLX's CPU `exp` is scalar, its arithmetic is vectorised.

13 ns an element against 3 (Linux, x86-64). Softmax and the gated GELU both stand on it.
"""

import mlx.core as mx

# Added to a float32 of moderate size it leaves the nearest integer in the last bits: 1.5 * 2**23.
ROUND = 12582912.0
# 2**f on [-0.5, 0.5], lowest power first; fitted here for the smallest relative error, 9.2e-8, with the
# first held at 1: whole powers are exact, and 2**128 is infinity, not NaN.
COEFFICIENTS = (1.0, 0.693147004, 0.240222424, 0.0555073358, 0.00967151299, 0.00132647261)
# What lies below is taken for it. Higher than 2**-126, the smallest normal float32, so that its
# products are normal too: CPUs multiply subnormal numbers many times slower.
LOWEST = -100.0


def exp2(x: mx.array) -> mx.array:
    """2**x for float32 up to 128 (infinity), relative error at most 3e-7; 2**-100 below -100."""
    x = mx.maximum(x, LOWEST)
    rounded = x + ROUND
    fraction = x - (rounded - ROUND)
    power = fraction * COEFFICIENTS[-1] + COEFFICIENTS[-2]
    for c in COEFFICIENTS[-3::-1]:
        power = power * fraction + c
    # The integer part, shifted from the last bits to the exponent's and added there.
    exponent = mx.left_shift(rounded.view(mx.int32), mx.array(23))
    return (power.view(mx.int32) + exponent).view(mx.float32)
