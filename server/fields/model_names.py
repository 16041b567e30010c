"""The ``model`` string: ``FAMILY[/METHOD][@objective=weight,objective=weight]`` or the name of a preset."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ladle.merging.exceptions import InputError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_MODEL = re.compile(rf"(?P<family>{_NAME})(?:/(?P<method>{_NAME}))?(?:@(?P<weights>.*))?", re.DOTALL)
_WEIGHT = re.compile(rf"\s*(?P<objective>{_NAME})\s*=\s*(?P<weight>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)\s*", re.ASCII)
_SYNTAX = "FAMILY[/METHOD][@objective=weight,objective=weight] or the name of a preset"


@dataclass(frozen=True)
class ModelName:
    """A parsed ``model`` string. ``str()`` of it parses back to the same value."""

    family: str
    method: str | None = None
    preference: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Parse ``text``; whether the names exist is not looked at.

        Raises:
            InputError: field ``model``.
        """
        match = _MODEL.fullmatch(text)
        if match is None:
            raise InputError("model", text, _SYNTAX)
        preference: dict[str, float] = {}
        if match["weights"] is not None:
            for part in match["weights"].split(","):
                pair = _WEIGHT.fullmatch(part)
                if pair is None or not math.isfinite(float(pair["weight"])):
                    raise InputError("model", text, f"objective=number in every part after '@', which {part!r} is not")
                if pair["objective"] in preference:
                    raise InputError("model", text, f"every objective once; {pair['objective']!r} occurs twice")
                preference[pair["objective"]] = float(pair["weight"])
        return cls(match["family"], match["method"], tuple(preference.items()))

    def __str__(self) -> str:
        method = f"/{self.method}" if self.method is not None else ""
        weights = ",".join(f"{name}={weight!r}" for name, weight in self.preference)
        return f"{self.family}{method}{'@' + weights if weights else ''}"
