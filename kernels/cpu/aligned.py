"""Memory for compiled loops that begins where a cache line does."""

from __future__ import annotations

from typing import Any

import numpy as np

from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.intrinsics import address

_LINE = 64
"""Bytes of a cache line."""


@inner(**INNER)
def aligned(shape: tuple[int, ...], like: Any) -> Any:
    """Undefined numbers of the dtype of ``like``: rows that are whole cache lines are read from as many, and not from
    one more each."""
    count = 1
    for size in shape:
        count *= size
    line = _LINE // like.itemsize
    memory = np.empty(count + line, like.dtype)
    # Allocators align to less than a cache line: one line too many is taken, and what lies before the first whole one
    # is skipped.
    start = -(address(memory) // like.itemsize) % line
    return memory[start : start + count].reshape(shape)


def aligned_array(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array whose first number begins a cache line, so that no vector of it lies in two."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def scratch(size: int) -> Any:
    """``size`` numbers for the one product that runs: fresh memory would be mapped anew, page by page, by each."""
    global _memory
    if _memory.size < size:
        _memory = np.empty(size, np.float32)
    return _memory[:size]


_memory: Any = np.empty(0, np.float32)
