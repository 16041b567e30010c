"""``custom``: a request's own sum of sources."""

import math
from collections.abc import Mapping
from typing import Any

from ladle.guidance.method import Availability, ignores_preference
from ladle.guidance.plan import Plan, PromptView, Source, Steering
from ladle.guidance.sources import arrange, summing_to_one
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import explicit
from ladle.merging.preferences.preference import Preference
from ladle.steering_options import MAX_STRENGTH

MAX_TERMS = 32
KEYS = ("source", "weight", "system")


class Custom:
    """S = sum_i weight_i * l_i over ``terms``, each ``{"source": ..., "weight": number, "system": text}``.

    A source is ``"base"``, the name of a member, of a steering vector or of another model of the family, or merge
    coefficients by member; ``system``, which may be left out, is a system message for this source alone. The method is
    ours; it is the algebra that the others are written in. Nothing is normalised unless ``normalize`` says so.
    """

    name = "custom"
    options = frozenset({"terms", "normalize"})
    normalizations: tuple[str, ...] = ("none", "sum")
    takes_preference = False
    needs = frozenset({"terms"})

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return Availability(True)

    def plan(self, family: Family, steering: Steering) -> Plan:
        preference = None
        warnings: tuple[str, ...] = ()
        if steering.preference is not None:
            preference = Preference.of(steering.preference, family.objectives, field="steering.preference")
            warnings = (ignores_preference(self.name),)
        terms = steering.terms
        if not isinstance(terms, (list, tuple)) or not 1 <= len(terms) <= MAX_TERMS:
            allowed = f"a list of 1 to {MAX_TERMS} objects with {', '.join(KEYS)} (required by method custom)"
            raise InputError("steering.terms", terms, allowed)
        sources = [_term(family, term, f"steering.terms[{index}]") for index, term in enumerate(terms)]
        if steering.normalize == "sum":
            sources, _ = summing_to_one(sources)
        return Plan(
            method=self.name,
            preference=preference,
            coefficients=None,
            sources=arrange(sources, first_stays=False, trace=steering.trace, field="steering.terms"),
            normalize=steering.normalize,
            trace=steering.trace,
            warnings=warnings,
        )


def _term(family: Family, raw: Any, field: str) -> Source:
    if not isinstance(raw, Mapping):
        raise InputError(field, raw, f"an object with {', '.join(KEYS)}")
    for key in raw:
        if key not in KEYS:
            raise InputError(f"{field}.{key}", raw[key], f"the keys {', '.join(KEYS)}")
    # A weight is required, and a system message is the source's own: a value's comes along unless the term brings
    # another.
    weight, system = raw.get("weight"), raw.get("system")
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if weight is None or not number or not abs(weight) <= MAX_STRENGTH or not math.isfinite(weight):
        raise InputError(f"{field}.weight", weight, f"a finite number between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}")
    if system is not None and not isinstance(system, str):
        raise InputError(f"{field}.system", system, "a text")
    name, terms, model, own = _weights(family, raw.get("source"), f"{field}.source")
    text = own if system is None else system
    given = None if system is None else f"{field}.system"
    view = PromptView("system", text, given) if text is not None else None
    return Source(name, "term", float(weight), terms, model, view)


def _weights(family: Family, raw: Any, field: str) -> tuple[str, tuple[tuple[str, float], ...], str, str | None]:
    """Name, coefficients, model and system message of a source. Raises InputError."""
    members, whole = _members(family)
    if isinstance(raw, Mapping):
        stated = explicit(raw, tuple(members), field=field).as_dict()
        # Two names may have one member's weights: their coefficients add up.
        terms: dict[str, float] = {}
        for name, value in stated.items():
            terms[members[name][0]] = terms.get(members[name][0], 0.0) + value
        models = {members[name][1] for name in stated}
        if len(models) > 1:
            raise InputError(field, dict(raw), "members of one model")
        return "merged", tuple((name, value) for name, value in terms.items() if value != 0.0), models.pop(), None
    if raw == "base":
        return "base", (), "", None
    if isinstance(raw, str) and raw and raw in family.models:
        return raw, (), raw, None
    if isinstance(raw, str) and raw in whole:
        member, model = members[raw]
        system = next((value.system for value in family.values if value.name == raw), None)
        return raw, ((member, 1.0),), model, system
    models = {name for name in family.models if name}
    names = ", ".join(["base", *sorted(models), *whole])
    raise InputError(field, raw, f"{names}, or an object of coefficients by member")


def _members(family: Family) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]]:
    """(member, model) of every language member and steering vector by name, and the names of those that are a source
    by themselves.

    Explicit values give no next-token scores. A value conditioned on the preference is nothing without one: its parts
    take coefficients.
    """
    members = {name: (name, "") for name in family.weighable}
    for member in (family.members_of[name] for name in family.experts):
        if model := family.model_of(member):
            members[member] = (member, model)
    parts: set[str] = set()
    for value in family.values:
        if value.kind != "implicit":
            continue
        members[value.name] = (value.member, value.model)
        if value.conditioned:
            parts.add(value.name)
        for _, part in value.conditioned:
            members[part] = (part, value.model)
            parts.add(part)
    return members, tuple(name for name in members if name not in parts)
