"""Products of a few rows with float16 weights on a CPU, compiled by numba: the parts that ``cpu_layer`` is made of.

Decoding reads every weight once for a handful of rows. Weights stay float16 in memory and are widened in registers;
sums are float32. What is compiled here is called from compiled code only.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ladle.kernels.cpu.compiler import INNER
from ladle.kernels.cpu.intrinsics import power_of_two, prefetch, widen
from ladle.kernels.cpu.types import Floats, Halves

_AHEAD = 2
"""Rows between what is computed and what is asked for."""


@njit(inline="always", **INNER)
def _ask(weight: Halves, j: int) -> None:
    """The processor's own prefetching stops short of DRAM's speed: ask for row ``j`` before it is needed."""
    size = weight.shape[1] * 2
    row = weight.ctypes.data + j * size
    for line in range(0, size, 64):
        prefetch(row + line)


@njit(inline="always", **INNER)
def exp(x: np.float32) -> np.float32:
    """e^x to two units in the last place, in a form that vectorises (libm's does not); NaN of NaN. Below -60, which
    nothing that it is added to notices, e^-60: products with less would be denormal, and slow."""
    x = min(max(x, np.float32(-60.0)), np.float32(88.0)) if x == x else x
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


@njit(**INNER)
def dots(weight: Halves, x: Floats, y: Floats, start: int, stop: int) -> None:
    """y[:, j] = x weight[j] for start <= j < stop; ``weight`` [out, in], ``x`` [rows, in], ``y`` [rows, out].

    A weight is widened once for up to four rows; from five rows on, four weights and four rows share their loads.
    """
    rows = x.shape[0]
    if rows > 4:
        whole = start + (stop - start) // 4 * 4
        _tiles(weight, x, y, start, whole)
        start = whole
    first = 0
    while first < rows:
        left = rows - first
        if left >= 4:
            _four(weight, x, y, start, stop, first)
            first += 4
        elif left == 3:
            _three(weight, x, y, start, stop, first)
            first += 3
        elif left == 2:
            _two(weight, x, y, start, stop, first)
            first += 2
        else:
            _one(weight, x, y, start, stop, first)
            first += 1


@njit(**INNER)
def _one(weight: Halves, x: Floats, y: Floats, start: int, stop: int, m: int) -> None:
    for j in range(start, stop):
        _ask(weight, j + _AHEAD)
        a = np.float32(0)
        for i in range(weight.shape[1]):
            a += widen(weight[j, i]) * x[m, i]
        y[m, j] = a


@njit(**INNER)
def _two(weight: Halves, x: Floats, y: Floats, start: int, stop: int, m: int) -> None:
    for j in range(start, stop):
        _ask(weight, j + _AHEAD)
        a = b = np.float32(0)
        for i in range(weight.shape[1]):
            w = widen(weight[j, i])
            a += w * x[m, i]
            b += w * x[m + 1, i]
        y[m, j] = a
        y[m + 1, j] = b


@njit(**INNER)
def _three(weight: Halves, x: Floats, y: Floats, start: int, stop: int, m: int) -> None:
    for j in range(start, stop):
        _ask(weight, j + _AHEAD)
        a = b = c = np.float32(0)
        for i in range(weight.shape[1]):
            w = widen(weight[j, i])
            a += w * x[m, i]
            b += w * x[m + 1, i]
            c += w * x[m + 2, i]
        y[m, j] = a
        y[m + 1, j] = b
        y[m + 2, j] = c


@njit(**INNER)
def _four(weight: Halves, x: Floats, y: Floats, start: int, stop: int, m: int) -> None:
    for j in range(start, stop):
        _ask(weight, j + _AHEAD)
        a = b = c = d = np.float32(0)
        for i in range(weight.shape[1]):
            w = widen(weight[j, i])
            a += w * x[m, i]
            b += w * x[m + 1, i]
            c += w * x[m + 2, i]
            d += w * x[m + 3, i]
        y[m, j] = a
        y[m + 1, j] = b
        y[m + 2, j] = c
        y[m + 3, j] = d


@njit(**INNER)
def _tiles(weight: Halves, x: Floats, y: Floats, start: int, stop: int) -> None:
    """``stop - start`` is a multiple of four; so many rows at a time as there are, the last of them together."""
    rows = x.shape[0]
    for j in range(start, stop, 4):
        for q in range(4):
            _ask(weight, j + 4 + q)
        for m in range(0, rows - 3, 4):
            _tile(weight, x, y, j, m)
        if rows % 4:
            _tile(weight, x, y, j, rows - 4)  # some rows again: quicker than a shape of their own


@njit(inline="always", **INNER)
def _tile(weight: Halves, x: Floats, y: Floats, j: int, m: int) -> None:
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
    for i in range(weight.shape[1]):
        p, q, r, s = x[m, i], x[m + 1, i], x[m + 2, i], x[m + 3, i]
        w = widen(weight[j, i])
        a0 += w * p
        a1 += w * q
        a2 += w * r
        a3 += w * s
        w = widen(weight[j + 1, i])
        b0 += w * p
        b1 += w * q
        b2 += w * r
        b3 += w * s
        w = widen(weight[j + 2, i])
        c0 += w * p
        c1 += w * q
        c2 += w * r
        c3 += w * s
        w = widen(weight[j + 3, i])
        d0 += w * p
        d1 += w * q
        d2 += w * r
        d3 += w * s
    y[m, j], y[m + 1, j], y[m + 2, j], y[m + 3, j] = a0, a1, a2, a3
    y[m, j + 1], y[m + 1, j + 1], y[m + 2, j + 1], y[m + 3, j + 1] = b0, b1, b2, b3
    y[m, j + 2], y[m + 1, j + 2], y[m + 2, j + 2], y[m + 3, j + 2] = c0, c1, c2, c3
    y[m, j + 3], y[m + 1, j + 3], y[m + 2, j + 3], y[m + 3, j + 3] = d0, d1, d2, d3


@njit(**INNER)
def add_expanded(
    expand: Halves, ranks: int, shrunk: Floats, t: int, y: Floats, total: int, start: int, stop: int
) -> None:
    """y[t, start:stop] += sum_r shrunk[t, total + r] expand[r, start:stop], r < ``ranks``; zeros cost nothing.

    ``expand`` is [R, out]; ``shrunk`` holds from column ``total`` on what the bank's shrink products gave, times the
    coefficients.
    """
    # Slices: an index that could be negative, for all the compiler knows, keeps a loop from being vectorised.
    added = y[t, start:stop]
    r = 0
    while r < ranks:
        a = shrunk[t, total + r]
        if r + 3 < ranks:  # four at once: y is read and written less often
            b, c, d = shrunk[t, total + r + 1], shrunk[t, total + r + 2], shrunk[t, total + r + 3]
            if a != 0 or b != 0 or c != 0 or d != 0:
                e, f = expand[r, start:stop], expand[r + 1, start:stop]
                g, h = expand[r + 2, start:stop], expand[r + 3, start:stop]
                for i in range(added.shape[0]):
                    added[i] += a * widen(e[i]) + b * widen(f[i]) + c * widen(g[i]) + d * widen(h[i])
            r += 4
        else:
            if a != 0:
                e = expand[r, start:stop]
                for i in range(added.shape[0]):
                    added[i] += a * widen(e[i])
            r += 1
