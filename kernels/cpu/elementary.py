"""Functions of one number that compiled loops call, in forms that vectorise."""

from __future__ import annotations

import numpy as np

from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.intrinsics import power_of_two


@inner(inline="always", **INNER)
def exp(x: np.float32) -> np.float32:
    """e^x to two units in the last place, in a form that vectorises (libm's does not); NaN of NaN. Below -60, which
    nothing that it is added to notices, e^-60: products with less would be denormal, and slow."""
    x = min(max(x, np.float32(-60.0)), np.float32(88.0)) if x == x else x
    # e^x = 2^whole e^r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7.
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    # ln 2 in two parts, the first exact in few bits.
    r = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    p = np.float32(1.0 / 5040)
    p = p * r + np.float32(1.0 / 720)
    p = p * r + np.float32(1.0 / 120)
    p = p * r + np.float32(1.0 / 24)
    p = p * r + np.float32(1.0 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * power_of_two(np.int32(whole))
