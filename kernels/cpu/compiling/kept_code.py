"""Compiled code that is kept for the next start, in files of which each says what it holds.

Numba keeps an index a function beside numbered files. Two processes that compile a function for different types at the
same time give both the same number, and from then on one type is answered with the other's code: wrong numbers, or the
end of the process. Here a file is named by what it is for and says so inside too: only whole files are shared.
"""

from __future__ import annotations

import hashlib
import logging
from importlib import metadata
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

_log = logging.getLogger(__name__)


class KeptFiles(IndexDataCacheFile):
    """A file for each signature and processor of one function; there is no index.

    ``source`` stands for all code that may be compiled into the function, of which numba watches one file.
    """

    _told = False

    def __init__(self, source: str, cache_path: str, filename_base: str, source_stamp: Any) -> None:
        super().__init__(cache_path, filename_base, source_stamp)
        self._function = filename_base
        self._made_by = source, numba.__version__, metadata.version("llvmlite")

    def _file(self, key: Any) -> str:
        """A name for ``key``: a signature, a processor and the function's own code."""
        of = repr((self._made_by, key)).encode()
        return f"{self._function}.{hashlib.sha256(of).hexdigest()[:16]}.nbc"

    def flush(self) -> None:
        """Nothing: a file holds what its name says for as long as it lies there."""

    def save(self, key: Any, data: Any) -> None:
        """Keep ``data``. What cannot be written is compiled anew at the next start; one warning says so."""
        try:
            self._save_data(self._file(key), (self._made_by, key, data))
        except OSError as problem:
            if not KeptFiles._told:
                KeptFiles._told = True
                _log.warning("Compiled loops cannot be kept for the next start in %s: %s.", self._cache_path, problem)

    def load(self, key: Any) -> Any:
        """What was kept for ``key``; None where nothing was, or where the file is damaged or another's."""
        try:
            made_by, held, data = self._load_data(self._file(key))
        except Exception:  # a file that is missing, or damaged in any way
            return None
        return data if (made_by, held) == (self._made_by, key) else None


def keep(dispatcher: Any, source: str) -> None:
    """From now on what ``dispatcher`` compiles is kept, and what was kept is loaded.

    Raises:
        RuntimeError: numba finds no folder that can be written to.
    """
    cache = FunctionCache(dispatcher.py_func)
    cache._cache_file = KeptFiles(
        source, cache.cache_path, cache._impl.filename_base, cache._impl.locator.get_source_stamp()
    )
    dispatcher._cache = cache
