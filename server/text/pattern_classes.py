"""Patterns as JSON Schema means them, in the words of the grammar library's own syntax (Rust's).

The standard means JavaScript's regular expressions, many validators take their language's. Where these disagree the
answer stays within all of them: a text that fits here fits there."""

from __future__ import annotations

import re
from collections.abc import Iterator

# An escape, the beginning of a class, a point, or anything else.
_OUTSIDE = re.compile(
    r"\\(?:[pP]\{[^}]*\}|[pP].|[ux]\{[0-9a-fA-F]{1,6}\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|0[0-9]+|c[a-zA-Z]|.)|.",
    re.DOTALL,
)
_LITERALS = {"0": 0, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
# White space, digits and letters of JavaScript, Python and Rust alike, and those of any of them.
_SPACES = r"\t-\r \xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
_ANY_SPACES = rf"{_SPACES}\x1C-\x1F\x{{85}}\x{{FEFF}}"
_ANY_LETTERS = r"_\p{L}\p{M}\p{N}\p{Pc}"
_IN_ALL = {
    "s": f"[{_SPACES}]", "S": f"[^{_ANY_SPACES}]",
    "d": "[0-9]", "D": r"[^\p{Nd}]",
    "w": "[0-9A-Za-z_]", "W": f"[^{_ANY_LETTERS}]",
}  # fmt: skip
_IN_ANY = {
    "s": f"[{_ANY_SPACES}]", "S": f"[^{_SPACES}]",
    "d": r"\p{Nd}", "D": "[^0-9]",
    "w": f"[{_ANY_LETTERS}]", "W": "[^0-9A-Za-z_]",
}  # fmt: skip
_POINT = "[^\\n\\r\u2028\u2029]"
_QUOTE, _BACKSLASH, _LAST = 0x22, 0x5C, 0x1F
# The library writes a set that holds all 32 control characters as if it held the quote and the backslash too
# (llguidance 1.9). Without the last of them it does not.
_WITHOUT_LAST = r"[^\x1F]"


class _UnreadError(ValueError):
    """A pattern that is left as it is, for the library to judge."""


def rust_pattern(pattern: str) -> str:
    """``pattern``, or one that fewer texts fit; as it is where it cannot be read."""
    try:
        return "".join(_translated(pattern))
    except _UnreadError:
        return pattern


def _translated(pattern: str) -> Iterator[str]:
    place = 0
    while place < len(pattern):
        if pattern[place] == "[":
            text, place = _class(pattern, place + 1)
            yield text
            continue
        token = _token(pattern, place)
        place += len(token)
        if token == ".":
            yield _POINT
        elif token[0] != "\\" or len(token) < 2:
            yield token
        elif token[1] in _IN_ALL:
            yield _IN_ALL[token[1]]
        elif token[1] in "pP" and len(token) > 2:
            yield f"[{token}&&{_WITHOUT_LAST}]"
        else:
            literal = _literal(token)
            yield token if literal is None else _written(literal)


def _token(pattern: str, place: int) -> str:
    match = _OUTSIDE.match(pattern, place)
    assert match is not None, "it matches any character"
    return match[0]


def _class(pattern: str, place: int) -> tuple[str, int]:
    """The class whose inside begins at ``place``, and where it ends. A bracket in it is a character like others."""
    negated = pattern[place : place + 1] == "^"
    place += negated
    if pattern[place : place + 1] in ("]", ""):
        raise _UnreadError  # nothing, or anything, or a bracket: no two languages agree
    ranges: list[tuple[int, int]] = []
    sets: list[str] = []
    while pattern[place : place + 1] != "]":
        first, place = _item(pattern, place)
        if pattern[place : place + 1] == "-" and pattern[place + 1 : place + 2] not in ("]", ""):
            last, place = _item(pattern, place + 1)
            if isinstance(first, str) or isinstance(last, str) or last < first:
                raise _UnreadError
            ranges.append((first, last))
        elif isinstance(first, str):
            sets.append(first)
        else:
            ranges.append((first, first))
    if not negated and any(kind.swapcase() in sets for kind in sets):
        return "(?s:.)", place + 1  # such as [\s\S]
    known = _IN_ANY if negated else _IN_ALL
    inside = "".join(_written(a) if a == b else f"{_written(a)}-{_written(b)}" for a, b in ranges)
    inside += "".join(known.get(kind, kind) for kind in sets)
    return _without_last(f"[{'^' * negated}{inside}]", ranges, bool(sets), negated), place + 1


def _without_last(text: str, ranges: list[tuple[int, int]], sets: bool, negated: bool) -> str:
    """The class ``text`` without the last control character, where it may hold all of them and not both of the other
    two."""

    def holds(character: int) -> bool:
        return any(a <= character <= b for a, b in ranges) != negated

    if not sets and ((holds(_QUOTE) and holds(_BACKSLASH)) or not holds(_LAST)):
        return text
    alone = not negated and not sets and (_LAST, _LAST) in ranges
    return text if alone else f"[{text}&&{_WITHOUT_LAST}]"


def _item(pattern: str, place: int) -> tuple[int | str, int]:
    """A character of a class by its number, or a set of characters by its letter or its escape, and where it ends."""
    if place >= len(pattern):
        raise _UnreadError
    token = _token(pattern, place)
    place += len(token)
    if token[0] != "\\":
        return ord(token), place
    if len(token) < 2:
        raise _UnreadError
    if token[1] in _IN_ALL:
        return token[1], place
    if token[1] in "pP" and len(token) > 2:
        return token, place
    literal = 8 if token[1] == "b" else _literal(token)
    if literal is None:
        raise _UnreadError
    return literal, place


def _literal(token: str) -> int | None:
    """The character that an escape is, by its number; None where it is something else."""
    kind, digits = token[1], token[2:].strip("{}")
    if kind in "ux" and digits:
        number = int(digits, 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise _UnreadError  # half of a pair means nothing to some
        return number
    if kind == "0" and digits:
        raise _UnreadError  # in some languages it is octal
    if kind == "c" and digits:
        return ord(digits) % 32
    if kind in _LITERALS:
        return _LITERALS[kind]
    return None if kind.isalnum() else ord(kind)


def _written(character: int) -> str:
    text = chr(character)
    if text in r"\^$.|?*+()[]{}-&~#":
        return f"\\{text}"
    return text if text.isprintable() else f"\\x{{{character:X}}}" if character > 0x7F else f"\\x{character:02X}"
