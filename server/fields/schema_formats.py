"""Formats of strings in schemas: those that the grammar library keeps to, and what it lets pass that is none."""

from __future__ import annotations

from typing import Any

# By the standard every other format is a note.
FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"})

_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_FOURTH = r"(?:0[48]|[2468][048]|[13579][26])"
_LEAP = rf"(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)"
# The library knows how many days a month has, but not which years are leap years; the year 0 is none to most readers.
_DATE = rf"(?:{_YEAR}-(?:0[13-9]|1[0-2])-[0-9]{{2}}|{_YEAR}-02-(?:[01][0-9]|2[0-8])|{_LEAP}-02-29)"
# A 60th second is one only where a day ends in UTC, and few readers take it there.
_TIME = r"[0-9]{2}:[0-9]{2}:[0-5]"
_NARROWER = {
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}[Tt]{_TIME}",
    "time": f"^{_TIME}",
    # Millions of years are more than readers hold.
    "duration": r"^P(?:[0-9]{1,6}[A-Z]|T)+$",
}


def formats(part: dict[str, Any]) -> None:
    """Take out of ``part`` a format that binds nothing, and add to a date or the like what the library forgets."""
    name = part.get("format")
    if not isinstance(name, str):
        return
    if name not in FORMATS:
        del part["format"]
    elif name in _NARROWER:
        pattern = _NARROWER[name]
        if "pattern" not in part:
            part["pattern"] = pattern
        elif isinstance(part.get("allOf", []), list):
            part["allOf"] = [*part.get("allOf", []), {"pattern": pattern}]
