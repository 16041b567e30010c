"""Compiled code for a processor, made in another process while this one has other things to do.

A door of its own beside ``dispatch``, because torch takes seconds to import and the other process should be at work by
then. What it makes is kept on disk, where this process finds it.
"""

from __future__ import annotations

import importlib.util
import logging
import select
import subprocess
import sys
import threading

_log = logging.getLogger(__name__)
_PATIENCE_S = 600.0
"""After which a process that says nothing is given up."""
_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


def compile_ahead(quantized: bool) -> bool:
    """Begin to compile what the first step of a bfloat16 model on this processor goes through, ``quantized`` or not,
    unless that lies on disk already or cannot be kept there. Returns whether it was begun."""
    global _process
    if importlib.util.find_spec("numba") is None:
        return False
    from ladle.kernels.cpu import first_code

    form = "int8" if quantized else "bfloat16"
    with _lock:
        if _process is not None or first_code.is_done(form):
            return False
        command = [sys.executable, "-P", "-m", first_code.__name__, form]
        try:
            _process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as problem:
            _log.warning("Loops are compiled in this process: none could be started beside it (%s).", problem)
            return False
    return True


def await_code(stage: str) -> None:
    """Wait until ``stage`` of what ``compile_ahead`` began is done: "products", or "layers", which come after them.
    Where it failed, loops are compiled at their first call."""
    global _process
    with _lock:
        if _process is None:
            return
        assert _process.stdin is not None and _process.stdout is not None
        while True:
            line = _process.stdout.readline() if select.select([_process.stdout], [], [], _PATIENCE_S)[0] else b""
            done = line.decode().strip()
            if done == stage and done != "layers":
                return
            if not line or done == "layers":
                break
        if not line:
            _log.warning("Loops are compiled in this process: the one beside it has failed.")
            _process.kill()
        # Its own end, of the pipe that it ends with.
        _process.stdin.close()
        _process.wait()
        _process.stdout.close()
        _process = None
