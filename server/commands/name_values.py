"""``name=number,name=number`` as options spell preferences and coefficients."""

from __future__ import annotations

import math

from ladle.merging.exceptions import InputError


def parse_pairs(text: str, field: str) -> dict[str, float]:
    """The numbers by name.

    Raises:
        InputError: naming ``field``: not of that form, a name twice, or a number that is not finite.
    """
    pairs: dict[str, float] = {}
    for part in text.split(","):
        name, separator, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not separator or not name or not math.isfinite(value) or name in pairs:
            raise InputError(field, text, f"name=number,name=number with every name once, which {part!r} breaks")
        pairs[name] = value
    return pairs
