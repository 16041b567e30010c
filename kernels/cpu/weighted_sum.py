"""A weighted sum of float32 arrays on a CPU in one pass: every term is read once, the result written once."""

from __future__ import annotations

import numba
import numpy as np

from ladle.kernels.cpu.arrays import Floats
from ladle.kernels.cpu.compiling.compiler import INNER, compiled, one_at_a_time
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.compiling.parts import in_parts

AT_ONCE = 4
"""Terms a pass; more of them take another pass over a part that the caches still hold."""
PART = 1 << 20
"""Elements a call, so that nobody else waits long to compute."""


def weighted_sum(out: Floats, terms: list[tuple[float, Floats]]) -> None:
    """out = sum_k c_k x_k, float32 sums in the order of the terms.

    Args:
        out: [n], contiguous; none of the terms.
        terms: (c_k, x_k), at least one, each x_k [n] and contiguous.
    """
    threads = numba.get_num_threads()
    # Part by part, and within a part pass by pass: later passes find the part in the cache.
    for start in range(0, out.shape[0], PART):
        part = slice(start, start + PART)
        for first in range(0, len(terms), AT_ONCE):
            some = terms[first : first + AT_ONCE]
            # Weight 0 would make NaN of what is not finite, so what pads a pass is a term that is there.
            values = [x[part] for _, x in some] + [some[0][1][part]] * (AT_ONCE - len(some))
            factors = np.array([c for c, _ in some], dtype=np.float32)
            with one_at_a_time:
                _add(out[part], first > 0, factors, *values, threads)


@inner(**INNER)
def _add_part(
    out: Floats, on_top: bool, c: Floats, u: Floats, v: Floats, w: Floats, x: Floats, parts: int, part: int
) -> None:
    n, count = out.shape[0], c.shape[0]
    start, stop = part * n // parts, (part + 1) * n // parts
    # Slices: their indices cannot be negative, which keeps the loops vectorised.
    o, a, b, d, e = out[start:stop], u[start:stop], v[start:stop], w[start:stop], x[start:stop]
    # The first pass writes the sum of up to four terms; later ones add theirs, one after the other, to what is there.
    if on_top:
        for i in range(o.shape[0]):
            o[i] += c[0] * a[i]
    elif count == 4:
        for i in range(o.shape[0]):
            o[i] = c[0] * a[i] + c[1] * b[i] + c[2] * d[i] + c[3] * e[i]
    elif count == 3:
        for i in range(o.shape[0]):
            o[i] = c[0] * a[i] + c[1] * b[i] + c[2] * d[i]
    elif count == 2:
        for i in range(o.shape[0]):
            o[i] = c[0] * a[i] + c[1] * b[i]
    else:
        for i in range(o.shape[0]):
            o[i] = c[0] * a[i]
    if on_top:
        if count > 1:
            for i in range(o.shape[0]):
                o[i] += c[1] * b[i]
        if count > 2:
            for i in range(o.shape[0]):
                o[i] += c[2] * d[i]
        if count > 3:
            for i in range(o.shape[0]):
                o[i] += c[3] * e[i]


_add_parts = in_parts(_add_part)


@compiled()
def _add(out: Floats, on_top: bool, c: Floats, u: Floats, v: Floats, w: Floats, x: Floats, threads: int) -> None:
    _add_parts((out, on_top, c, u, v, w, x, threads), threads)
