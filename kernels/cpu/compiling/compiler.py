"""How loops are compiled for the processor at hand: numba's settings, made before anything is compiled."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba

from ladle.kernels.cpu.compiling.kept_code import keep
from ladle.kernels.cpu.matrix_unit import may_use_tiles

_SUMS = {"reassoc", "contract", "nsz", "arcp"}
"""What fast-math may do: reorder sums, fuse multiply-adds. NaN and infinity keep their meaning: they are errors that
must be seen."""


def _widen_vectors() -> None:
    """LLVM keeps to 256 bits on most processors that have 512; weights arrive a quarter quicker with all of them."""
    # Whoever has set numba's own variable for features has chosen: nothing is added to it.
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and not numba.config.CPU_FEATURES:
        numba.config.CPU_NAME = llvm.get_host_cpu_name()
        numba.config.CPU_FEATURES = features.flatten() + ",-prefer-256-bit"


def _find_threads() -> None:
    """Load TBB, where it is installed, so that numba finds it: with OpenMP a step that shares its cores with another
    process takes ten times as long, for its threads wait for each other by spinning."""
    try:
        files = metadata.files("tbb") or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libtbb.so."):
            try:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue


def _source() -> str:
    """What compiled code follows from: all of the loops and of this folder, and whether there is a unit for matrices,
    which a container may be refused on a processor that has it."""
    # Numba watches the one file of a function, but these functions take in others from all over the folder.
    here = Path(__file__).parent.parent
    # Any change of any loop makes all kept code stale: which functions it was compiled into nobody keeps track of.
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("**/*.py"))))
    digest.update(b"matrices" if may_use_tiles() else b"")
    return digest.hexdigest()


def _find_folder() -> bool:
    """Whether compiled code can be kept for the next start: where numba was told to, or beside other caches."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(numba.config.CACHE_DIR or root / "ladle" / "compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    numba.config.CACHE_DIR = str(folder)
    return os.access(folder, os.W_OK)


one_at_a_time = threading.Lock()
"""Held while compiled loops run in parallel: not every threading layer of numba lets two threads in at once."""

_widen_vectors()
_find_threads()

EXACT: dict[str, Any] = {"boundscheck": False, "error_model": "numpy", "fastmath": False}
"""Options of what is called from compiled code and must round each result as IEEE 754 says. Unless it says so itself, a
function has its caller's fast-math."""
INNER: dict[str, Any] = {**EXACT, "fastmath": _SUMS}
"""Options of what is called from compiled code."""
SOURCE, KEPT = _source(), _find_folder()
"""What all compiled code follows from, and whether it can be kept."""


def compiled(**options: Any) -> Any:
    """A decorator for what is called from Python: compiled at its first call for each signature, without Python's lock,
    and kept for the next start. ``options`` as ``numba.njit`` takes them."""

    def made(function: Any) -> Any:
        # Without Python's lock: other threads of a server run while a step computes.
        dispatcher = numba.njit(nogil=True, no_cfunc_wrapper=True, **INNER, **options)(function)
        if KEPT:
            keep(dispatcher, SOURCE)
        return dispatcher

    return made
