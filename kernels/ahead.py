"""Compiled code for a processor, made in other processes while this one has other things to do.

A door of its own beside ``dispatch``, because torch takes seconds to import and the other processes should be at work
by then. What they make is kept on disk, where this process finds it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import threading

_log = logging.getLogger(__name__)
_PATIENCE_S = 600.0
"""After which a process that has not ended is given up."""
_GENTLE = 19  # how nice
_lock = threading.Lock()
_processes: dict[str, subprocess.Popen[bytes]] = {}
"""Those that compile, by the part of ``first_code.PARTS`` that they do."""


def compile_ahead(quantized: bool, gently: bool = False) -> bool:
    """Begin to compile what the first step of a bfloat16 model on this processor goes through, ``quantized`` or not,
    unless that lies on disk already or cannot be kept there. Returns whether it was begun.

    ``gently``: in what this process leaves of the processor, because nobody waits for it."""
    if importlib.util.find_spec("numba") is None:
        return False
    from ladle.kernels.cpu import first_code

    form = "int8" if quantized else "bfloat16"
    with _lock:
        if _processes:
            return False
        for part in first_code.PARTS:
            if first_code.is_done(form, part):
                continue
            command = [sys.executable, "-P", "-m", first_code.__name__, form, part]
            try:
                # A group of its own, which Ctrl-C does not reach. Not a session: many a system shares the processor out
                # by session first, where niceness says nothing.
                process = _processes[part] = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0)
                if gently and hasattr(os, "setpriority"):
                    os.setpriority(os.PRIO_PROCESS, process.pid, _GENTLE)
            except OSError as problem:
                _log.warning("Loops are compiled in this process: none could be started beside it (%s).", problem)
        return bool(_processes)


def compiling() -> bool:
    """Whether something that ``compile_ahead`` began was not awaited yet."""
    return bool(_processes)


def await_all() -> None:
    """Wait until all that ``compile_ahead`` began is done."""
    for part in list(_processes):
        await_code(part)


def await_code(part: str) -> None:
    """Wait until ``part`` of what ``compile_ahead`` began is done. Where it failed, loops are compiled at their first
    call."""
    with _lock:
        process = _processes.pop(part, None)
        if process is None:
            return
        try:
            failed = process.wait(_PATIENCE_S) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            failed = process.wait() != 0
        if failed:
            _log.warning("Loops are compiled in this process: the one beside it has failed.")
        # Our end of the pipe that it would have ended with.
        assert process.stdin is not None
        process.stdin.close()
