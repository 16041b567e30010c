"""What a sweep asks for: methods with their options, each at every preference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ladle.merging.preferences.simplex import Point

BASE = "base"
ORACLES = "oracles"
"""No method: the family's policies that were trained for one preference, each at that preference."""


@dataclass(frozen=True)
class Setting:
    """One method at one preference.

    Attributes:
        label: what results call the method: how it was written.
        steering: of the request, without the preference.
        weights: by objective, in the family's order; empty for the plain base, which has no preference.
    """

    label: str
    steering: dict[str, Any] = field(hash=False)
    weights: Point = ()

    @property
    def key(self) -> str:
        """Tells settings apart in files."""
        return f"{self.label}@{self.place}" if self.weights else self.label

    @property
    def place(self) -> str:
        """The preference as files write it: two settings of one place are at the same preference."""
        return place_of(self.weights)

    def request(self, objectives: Sequence[str]) -> dict[str, Any]:
        """The ``steering`` object."""
        if not self.weights:
            return dict(self.steering)
        return {**self.steering, "preference": dict(zip(objectives, self.weights, strict=True))}


def place_of(weights: Sequence[float]) -> str:
    """Six digits a weight, between commas."""
    return ",".join(f"{weight:g}" for weight in weights)


def parse_method(text: str) -> dict[str, Any]:
    """``mage:value=both,strength=0.5`` as a steering object. Values are JSON where they can be, else strings.

    Raises:
        ValueError: no method, or something that is no KEY=VALUE.
    """
    name, colon, rest = text.partition(":")
    if not name.strip():
        raise ValueError(f"methods: {text!r} is not allowed; allowed: METHOD or METHOD:KEY=VALUE,...")
    steering: dict[str, Any] = {"method": name.strip()}
    while colon:
        key, equals, rest = rest.partition("=")
        value, colon, rest = _first_value(rest)
        if not (key.strip() and equals and value != "") or "," in key:
            raise ValueError(f"methods: {key + equals + str(value)!r} of {text!r} is not allowed; allowed: KEY=VALUE")
        steering[key.strip()] = value
    return steering


def _first_value(text: str) -> tuple[Any, str, str]:
    """The value at the beginning of ``text``, the comma behind it if there is one, and what follows that. Commas within
    an object or a list are its own."""
    if text.lstrip().startswith(("{", "[")):
        try:
            value, end = json.JSONDecoder().raw_decode(text.lstrip())
        except json.JSONDecodeError:
            return text, "", ""
        behind, comma, rest = text.lstrip()[end:].partition(",")
        return (value, comma, rest) if not behind.strip() else (text, "", "")
    word, comma, rest = text.partition(",")
    try:
        return json.loads(word), comma, rest
    except json.JSONDecodeError:
        return word.strip(), comma, rest


def settings_of(
    methods: Sequence[str], points: Sequence[Point], oracles: Mapping[str, Sequence[float]] | None = None
) -> list[Setting]:
    """The plain base, which is what rewards are measured against, and every method at every point.

    Args:
        oracles: reward weights by name of the policies that were trained for one preference; what ``oracles`` among the
            methods stands for. Where they are asked for, other methods have their preferences for points too: a policy
            that knows one preference can only be compared there.

    Raises:
        ValueError: see ``parse_method``; a method that is named twice; or oracles of a family that has none.
    """
    asked = [method for method in methods if method != BASE]
    twice = {method for method in asked if asked.count(method) > 1}
    if twice:
        raise ValueError(f"methods: {sorted(twice)[0]!r} is named twice")
    trained = _trained(oracles or {}) if ORACLES in asked else []
    if ORACLES in asked and not trained:
        raise ValueError(f"methods: {ORACLES!r} is not allowed; allowed: a method, this family has no {ORACLES}")
    places = {place_of(point): point for point in (*points, *(oracle.weights for oracle in trained))}
    settings = [Setting(BASE, {"method": BASE})]
    for method in asked:
        if method == ORACLES:
            settings += trained
        else:
            settings += [Setting(method, parse_method(method), point) for point in places.values()]
    return settings


def _trained(oracles: Mapping[str, Sequence[float]]) -> list[Setting]:
    """Every oracle at the preference that it was trained for."""
    return [
        Setting(
            ORACLES,
            {"method": "bone_soup", "coefficients": {name: 1.0}},
            tuple(weight / sum(weights) for weight in weights),
        )
        for name, weights in oracles.items()
    ]


def setting_of(key: str) -> Setting:
    """The setting whose ``key`` this is; weights have the digits that keys have."""
    label, at, weights = key.rpartition("@")
    if not at:
        return Setting(key, {"method": key})
    return Setting(label, parse_method(label), tuple(float(weight) for weight in weights.split(",")))
