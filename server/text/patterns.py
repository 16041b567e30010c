"""What patterns that clients wrote find in texts, without risk: a pattern that never ends, or fills the memory, ends in
a process of its own."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]  # checks the syntax without compiling, which may take long

from ladle.merging.exceptions import InputError

MOST = 1000
"""Characters of a pattern."""

_SECONDS = 10.0  # the process has less of the processor, and ends by itself; it may have to wait for one
_CHILD = Path(__file__).with_name("pattern_process.py")


def require_pattern(pattern: str, field: str) -> None:
    """Raise InputError, at ``field``, for what is no pattern."""
    if not 1 <= len(pattern) <= MOST:
        raise InputError(field, f"{len(pattern)} characters", f"a pattern of 1 to {MOST} characters")
    try:
        _parser.parse(pattern)
    except (re.error, OverflowError) as error:
        raise InputError(field, pattern, reason=f"it is no regular expression of Python's: {error}") from None
    except RecursionError:
        raise InputError(field, pattern, reason="it is nested too deeply") from None


async def found(pattern: str, texts: Sequence[str], field: str) -> list[str | None]:
    """What ``pattern`` finds last in each of ``texts``: its first group where it has one, else the whole match; None
    where it finds nothing.

    Raises:
        InputError: at ``field``; it takes too long or too much memory, or is no pattern after all.
    """
    asked = json.dumps([pattern, list(texts)])
    command = [sys.executable, "-I", "-S", str(_CHILD)]
    try:
        done = await asyncio.to_thread(
            subprocess.run, command, input=asked.encode(), capture_output=True, timeout=_SECONDS, check=False
        )
        said = json.loads(done.stdout) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        said = None
    if said is None:
        raise InputError(field, pattern, reason="it takes too long or too much memory on the answers")
    if isinstance(said, str):
        raise InputError(field, pattern, reason=f"it is no regular expression of Python's: {said}")
    return list(said)
