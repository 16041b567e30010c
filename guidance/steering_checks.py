"""What a value of each ``steering`` key must be; what it means is for the methods to judge."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ladle.merging.errors import InputError

NORMALIZE = ("none", "sum", "norm")
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd", "alpha")
RANKINGS = ("likelihood", "implicit", "explicit")
SPANS = ("answer", "token")
MAX_STRENGTH = 100.0
MAX_BLOCK_LENGTH = 512
MAX_CANDIDATES = 1024  # every candidate is one more position to compute a token
MAX_ALPHA = 100.0
MAX_STAY = 65536
MAX_BUDGET = 100.0
MAX_PARTS = 256


def is_number(value: Any) -> bool:
    """Whether it is a JSON number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_strength(value: Any) -> bool:
    return is_number(value) and abs(value) <= MAX_STRENGTH and math.isfinite(value)


def strengths(raw: Mapping[str, Any]) -> dict[str, float]:
    """The strengths of both kinds of value, as float. Raises InputError."""
    for key, value in raw.items():
        if key not in ("implicit", "explicit"):
            raise InputError(f"steering.strength.{key}", value, "implicit, explicit")
        if not _is_strength(value):
            raise InputError(f"steering.strength.{key}", value, _STRENGTH)
    if not raw:
        raise InputError("steering.strength", dict(raw), "a number, or an object with implicit, explicit or both")
    return {key: float(value) for key, value in raw.items()}


def ranking(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``rank`` with its defaults: score by the sum over the answer, keep the best. Raises InputError."""
    for key in raw:
        if key not in ("by", "per", "keep"):
            raise InputError(f"steering.rank.{key}", raw[key], "the keys by, per, keep")
    found = {"by": None, "per": "answer", "keep": 1} | {key: value for key, value in raw.items() if value is not None}
    if found["by"] not in RANKINGS:
        raise InputError("steering.rank.by", found["by"], ", ".join(RANKINGS))
    if found["per"] not in SPANS:
        raise InputError("steering.rank.per", found["per"], ", ".join(SPANS))
    if not _is_count(found["keep"]):
        raise InputError("steering.rank.keep", found["keep"], "a whole number from 1 to n")
    return found


_STRENGTH = f"a finite number between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}"


# "preference", "target" and "coefficients" pass as any mapping here: their entries are judged against the family;
# those of "rank" by ranking.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda value: isinstance(value, str), "the name of a method"),
    "preference": (lambda value: isinstance(value, Mapping), "an object of weights by objective"),
    "target": (lambda value: isinstance(value, Mapping), "an object of quantiles by objective"),
    # An object's entries are judged by strengths.
    "strength": (lambda value: isinstance(value, Mapping) or _is_strength(value), _STRENGTH),
    "value": (lambda value: value in ("implicit", "explicit", "both"), "implicit, explicit, both"),
    "combine": (lambda value: value in ("merged", "ensemble"), "merged, ensemble"),
    "candidates": (
        lambda value: _is_count(value, MAX_CANDIDATES),
        f"a whole number from 1 to {MAX_CANDIDATES}",
    ),
    "block_length": (
        lambda value: _is_count(value, MAX_BLOCK_LENGTH),
        f"a whole number from 1 to {MAX_BLOCK_LENGTH}",
    ),
    "coefficients": (lambda value: isinstance(value, Mapping), "an object of numbers by member"),
    "terms": (lambda value: isinstance(value, (list, tuple)), "a list"),
    "normalize": (lambda value: value in NORMALIZE, ", ".join(NORMALIZE)),
    "trace": (lambda value: isinstance(value, bool), "true or false"),
    "rank": (lambda value: isinstance(value, Mapping), 'an object such as {"by": "explicit", "keep": 1}'),
    "negative_prompt": (lambda value: isinstance(value, str), "a text"),
    "divergence": (lambda value: value in DIVERGENCES, ", ".join(DIVERGENCES)),
    "alpha": (
        lambda value: is_number(value) and 0 < value <= MAX_ALPHA,
        f"a number above 0 and at most {MAX_ALPHA:g}",
    ),
    "complement": (
        lambda value: is_number(value) and 0 <= value <= MAX_STRENGTH,
        f"a number from 0 to {MAX_STRENGTH:g}",
    ),
    "expert_weight": (
        lambda value: is_number(value) and 0 < value <= MAX_STRENGTH,
        f"a number above 0 and at most {MAX_STRENGTH:g}",
    ),
    # How many there are is for the method to say.
    "top_experts": (_is_count, "a whole number from 1 to the number of experts"),
    "min_stay": (lambda value: _is_count(value, MAX_STAY), f"a whole number from 1 to {MAX_STAY}"),
    "kl_budget": (
        lambda value: is_number(value) and 0 < value <= MAX_BUDGET,
        f"a number of nats above 0 and at most {MAX_BUDGET:g}",
    ),
    "threshold": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    # Its parts are judged by the schedule.
    "schedule": (
        lambda value: isinstance(value, (list, tuple)) and 1 <= len(value) <= MAX_PARTS,
        f"a list of 1 to {MAX_PARTS} parts",
    ),
}
