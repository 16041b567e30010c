"""Patterns of strings that look ahead, which the grammar library does not read, in words that it does."""

from __future__ import annotations

import re
from typing import Any

# What zod writes for types of its own, with what takes the same texts without looking ahead.
_DATE = r"(?:\d+Y(?:\d+M)?(?:\d+D)?|\d+M(?:\d+D)?|\d+D)"
_SECONDS = r"\d+(?:[.,]\d+)?S"
_TIME = rf"T(?:\d+H(?:\d+M)?(?:{_SECONDS})?|\d+M(?:{_SECONDS})?|{_SECONDS})"
_ZOD = {
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$": (
        rf"^P(?:\d+W|{_DATE}(?:{_TIME})?|{_TIME})$"
    ),
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^(?:[A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+-]@(?:[A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
}
# An escaped character, a class, what opens and closes groups, an alternative.
_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|[()|]", re.DOTALL)


def ahead(part: dict[str, Any]) -> None:
    """Let ``part`` say in several patterns what one says that begins by looking ahead: ``^(?=a)b`` are the texts that
    both ``^a`` and ``^b`` fit."""
    pattern, beside = part.get("pattern"), part.get("allOf", [])
    if not isinstance(pattern, str) or not isinstance(beside, list):
        return
    pattern = part["pattern"] = _ZOD.get(pattern, pattern)
    patterns: list[str] = []
    while pattern.startswith("^(?="):
        end = _closing(pattern)
        if end is None:
            return
        patterns.append(f"^(?:{pattern[4:end]})")
        pattern = f"^{pattern[end + 1 :]}"
    if patterns:
        part["pattern"] = pattern
        part["allOf"] = [*beside, *({"pattern": each} for each in patterns)]


def _closing(pattern: str) -> int | None:
    """Where the group ends that stands behind the first character; None where alternatives stand around it, of which
    it begins but one, where it is repeated, or where there is no end."""
    depth, end = 0, None
    for token in _TOKEN.finditer(pattern):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0 and token[0] == "|":
            return None
        if depth == 0 and end is None and token[0] == ")":
            end = token.start()
    repeated = end is not None and pattern[end + 1 : end + 2] in ("*", "+", "?", "{")
    return None if depth or repeated else end
