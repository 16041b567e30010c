"""Large memory of the host, in huge pages where the system has them, taken before it is needed."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading

_PIECE = 1 << 25
_POPULATE_WRITE = 23  # of Linux 5.14 and later: take pages as writing would, and leave what is in them
_LOWEST_PRIORITY = 19


def zeroed_memory(size: int) -> mmap.mmap:
    """``size`` bytes of zeros.

    The system gives a page when it is first written. So that no request waits for that, a thread asks for all of them,
    page after page, beside whatever else the process does; what is written meanwhile stays.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        threading.Thread(target=_populate, args=(memory, size), name="ladle-memory", daemon=True).start()
    return memory


def _populate(memory: mmap.mmap, size: int) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)  # of this thread alone, on Linux
    # Through ctypes, which lets other threads go on meanwhile.
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for offset in range(0, size, _PIECE):
        if advise(start + offset, min(_PIECE, size - offset), _POPULATE_WRITE) != 0:
            return  # an older system, or no memory: pages come when they are written, as they would anyway
