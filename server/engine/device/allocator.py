"""What large tensors need of the C library and of torch: that they keep memory while it is used, and no longer."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Callable

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE = 1 << 30
_ARENAS = 2


def prepare() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB instead of unmapping them, and serve all threads from two arenas
    instead of eight a core.

    A step allocates and frees tensors of some megabytes; fresh mappings cost a page fault each 4 KiB, every step. Every
    arena keeps what its threads freed between blocks in use, and threads come and go: with many of them a server's
    memory grew by 2 % in twelve minutes of requests of all kinds, with two by less than half a percent.

    Best before there are threads. Returns whether the settings were taken (glibc on Linux only).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Setting a threshold also turns glibc's own adjustment of it off, so that it stays.
    settings = ((_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE), (_M_ARENA_MAX, _ARENAS))
    return all([bool(mallopt(name, value)) for name, value in settings])


class Trimmer:
    """Gives freed memory back to the system now and then. ``prepare`` keeps all of it, and what lies between
    blocks in use would otherwise add up as requests of ever other shapes come and go."""

    def __init__(self, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._next = clock() + every_s

    def tick(self) -> bool:
        """Trim if it is time; whether it was. Takes some milliseconds then, and a look at the clock otherwise."""
        now = self._clock()
        if now < self._next:
            return False
        self._trim(now)
        return True

    def trim(self) -> None:
        """Trim, and count the period from here. For when there is nothing else to do."""
        self._trim(self._clock())

    def _trim(self, now: float) -> None:
        self._next = now + self._every_s
        trim()


def trim() -> None:
    """Return what the C library holds of freed memory to the system (glibc on Linux only)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Take what is there now, code and a family above all, out of what Python looks through for rings of objects.

    It looks through everything once a quarter of it is new, which a large body can bring about, and holds all threads
    meanwhile: 0.2 to 0.4 s with the packages that a server has loaded. From here on it looks through what came later.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Return the memory of what is no longer used to the system: the C library and torch keep it otherwise. What has
    settled is looked through as well, for a family that is unloaded is a part of it."""
    settled = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if settled:
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()
