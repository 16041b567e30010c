"""One setting of the C library that large, short-lived tensors on a CPU depend on."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 30


def keep_large_blocks() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB instead of unmapping them.

    A step allocates and frees tensors of some megabytes; fresh mappings cost a page fault each 4 KiB, every step.
    Returns whether the setting was taken (glibc on Linux only).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))
