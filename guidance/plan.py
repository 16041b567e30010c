"""What a request asks for (Steering) and what the engine is to do about it (Plan). Pure data, no tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ladle.merging.coefficients import Coefficients
from ladle.merging.errors import InputError
from ladle.merging.preference import Preference

NORMALIZE = ("none", "sum")
MAX_STRENGTH = 100.0


@dataclass(frozen=True)
class Source:
    """What yields next-token logits.

    Attributes:
        name: how responses and traces call it.
        role: ``base``, ``merged``, ``reference``, ...
        weight: its weight in the combined score; 0 for a source that is only reported.
        coefficients: (member, coefficient) of its weights; empty is the plain base.
    """

    name: str
    role: str
    weight: float
    coefficients: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Steering:
    """The ``steering`` object of a request, its types checked; what the values mean is for the registry to judge.

    Attributes:
        method: None for the family's default.
        preference: weights by objective.
        strength: scales what the method adds to the base; None is 1.
        value, combine, candidates, terms: options of guidance methods; a method that has no use for one refuses it.
        coefficients: member weights that replace those computed from the preference.
        normalize: ``none``, or ``sum`` to divide the coefficients by their sum.
        trace: report per-token detail.
    """

    method: str | None = None
    preference: Mapping[str, float] | None = None
    strength: float | None = None
    value: str | None = None
    combine: str | None = None
    candidates: int | None = None
    coefficients: Mapping[str, float] | None = None
    terms: Any = None
    normalize: str = "none"
    trace: bool = False

    @classmethod
    def parse(cls, raw: "Mapping[str, Any] | None") -> "Steering":
        """Check keys and types; None and absent keys take their defaults.

        Raises:
            InputError: field ``steering.<key>``: an unknown key, or a value of the wrong type.
        """
        if raw is None:
            return cls()
        if not isinstance(raw, Mapping):
            raise InputError("steering", raw, "an object")
        known = [entry.name for entry in fields(cls)]
        for key in raw:
            if key not in known:
                raise InputError(f"steering.{key}", raw[key], f"the keys {', '.join(known)}")
        given = {key: value for key, value in raw.items() if value is not None}
        for key, value in given.items():
            valid, allowed = _CHECKS[key]
            if not valid(value):
                raise InputError(f"steering.{key}", value, allowed)
        if "strength" in given:
            given["strength"] = float(given["strength"])
        return cls(**given)


@dataclass(frozen=True)
class Plan:
    """One request's way from preference to score.

    Attributes:
        method: the method's registered name.
        preference: the normalised preference, None where the request gave none.
        coefficients: the merge coefficients after normalisation and strength, None for a method that merges nothing.
        sources: in order; the first one is what is sampled from.
        normalize: ``none`` or ``sum``, as requested.
        trace: report per-token detail.
        warnings: for the response.
    """

    method: str
    preference: Preference | None
    coefficients: Coefficients | None
    sources: tuple[Source, ...]
    normalize: str
    trace: bool
    warnings: tuple[str, ...]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_strength(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_STRENGTH and math.isfinite(value)


# "preference" and "coefficients" pass as any mapping here: their entries are judged against the family.
_CHECKS = {
    "method": (lambda value: isinstance(value, str), "the name of a method"),
    "preference": (lambda value: isinstance(value, Mapping), "an object of weights by objective"),
    "strength": (_is_strength, f"a finite number between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}"),
    "value": (lambda value: value in ("implicit", "explicit", "both"), "implicit, explicit, both"),
    "combine": (lambda value: value in ("merged", "ensemble"), "merged, ensemble"),
    "candidates": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
        "a whole number >= 1",
    ),
    "coefficients": (lambda value: isinstance(value, Mapping), "an object of numbers by member"),
    "terms": (lambda value: isinstance(value, (list, tuple)), "a list"),
    "normalize": (lambda value: value in NORMALIZE, ", ".join(NORMALIZE)),
    "trace": (lambda value: isinstance(value, bool), "true or false"),
}
