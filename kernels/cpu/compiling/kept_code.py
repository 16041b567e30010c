"""Compiled code that is kept for the next start, in files of which each says what it holds.

Numba keeps an index a function beside numbered files. Two processes that compile a function for different types at the
same time give both the same number, and from then on one type is answered with the other's code: wrong numbers, or the
end of the process. Here a file is named by what it is for and says so inside too: only whole files are shared. And what
another process compiles at the moment is waited for.
"""

from __future__ import annotations

import hashlib
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock, Timeout
from numba.core.caching import FunctionCache, IndexDataCacheFile

_log = logging.getLogger(__name__)
_PATIENCE_S = 120.0
"""After which what another process compiles is compiled here, too."""


class KeptFiles(IndexDataCacheFile):
    """A file for each signature and processor of one function; there is no index.

    ``source`` stands for all code that may be compiled into the function, of which numba watches one file.
    """

    _told = False

    def __init__(self, source: str, cache_path: str, filename_base: str, source_stamp: Any) -> None:
        super().__init__(cache_path, filename_base, source_stamp)
        self._function = filename_base
        self._made_by = source, numba.__version__, metadata.version("llvmlite")

    def place(self, key: Any) -> Path:
        """Of the file for ``key``."""
        return Path(self._cache_path) / self._file(key)

    def _file(self, key: Any) -> str:
        """A name for ``key``: a signature, a processor and the function's own code."""
        # Signature, processor and code are in the key, and whatever may be compiled in is in ``source``.
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


class KeptCache(FunctionCache):
    """What one function's dispatcher asks before it compiles, and tells when it has compiled.

    In between a lock is held for the signature: until it is kept, cannot be compiled, or the process ends. Nobody waits
    in a circle: who waits for a function compiles one that calls it.
    """

    def __init__(self, function: Any, source: str) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = KeptFiles(source, self.cache_path, self._impl.filename_base, stamp)
        self._compiled_here: dict[Any, FileLock] = {}

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept for a signature; None where it is to be compiled here."""
        # Looked for without the lock first: nearly every start finds everything, and takes no lock at all.
        found = super().load_overload(sig, target_context)
        key = self._index_key(sig, target_context.codegen())
        if found is None and self._enabled and key not in self._compiled_here:
            lock = FileLock(self._cache_file.place(key).with_suffix(".lock"))
            try:
                lock.acquire(timeout=_PATIENCE_S)
            except (OSError, Timeout):  # a folder that cannot be locked in, or a process that stands still
                return None
            # Another one may have kept it meanwhile.
            found = super().load_overload(sig, target_context)
            if found is None:
                self._compiled_here[key] = lock
            else:
                lock.release()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, and let go who waits for it."""
        super().save_overload(sig, data)
        self.let_go(sig, data.codegen)

    def let_go(self, sig: Any, codegen: Any) -> None:
        """End the wait of those who wait for a signature, where there is one: it has been kept, or never will be."""
        lock = self._compiled_here.pop(self._index_key(sig, codegen), None)
        if lock is not None:
            lock.release()


def keep(dispatcher: Any, source: str) -> None:
    """From now on what ``dispatcher`` compiles is kept, and what was kept is loaded.

    Raises:
        RuntimeError: numba finds no folder that can be written to.
    """
    cache, compile_now = KeptCache(dispatcher.py_func, source), dispatcher.compile

    def compile_or_let_go(sig: Any) -> Any:
        try:
            return compile_now(sig)
        except BaseException:
            # Numba tells a cache of what was compiled, and never of what could not be.
            cache.let_go(sig, dispatcher.targetctx.codegen())
            raise

    dispatcher._cache, dispatcher.compile = cache, compile_or_let_go
