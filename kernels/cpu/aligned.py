"""Memory for compiled loops that begins where a cache line does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ladle.kernels.cpu.compiler import INNER
from ladle.kernels.cpu.intrinsics import address

_LINE = 64
"""Bytes of a cache line."""


@njit(**INNER)
def aligned(shape: tuple[int, ...], like: Any) -> Any:
    """Undefined numbers of the dtype of ``like``: rows that are whole cache lines are read from as many, and not from
    one more each."""
    count = 1
    for size in shape:
        count *= size
    line = _LINE // like.itemsize
    memory = np.empty(count + line, like.dtype)
    start = -(address(memory) // like.itemsize) % line
    return memory[start : start + count].reshape(shape)
