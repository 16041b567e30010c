"""Steering that changes while an answer is written: in parts that a request lays down, or by a change on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ladle.guidance.plan import Steering
from ladle.merging.exceptions import InputError
from ladle.steering_options import AIMS, OPTIONS, WHOLE

LAST = 1 << 31


def changed(before: Steering, given: Mapping[str, Any]) -> Steering:
    """``before`` with what is ``given``, the keys of a request's ``steering``.

    What is not given stays as it was. A new aim (``preference``, ``target``, ``coefficients``, ``terms``) takes the
    place of the old one, of whatever kind that was, and another ``method`` takes over nothing but the aim's preference
    or target.

    Raises:
        InputError: ``steering.<key>``: an unknown key, a value of the wrong type, or a key that holds for the whole
            answer (``trace``, ``schedule``, ``rank``, ``search``, ``monitor``).
    """
    for key in WHOLE:
        if given.get(key) is not None:
            raise InputError(f"steering.{key}", given[key], reason="it holds for the whole answer")
    new = Steering.parse(given)
    named = {key for key, value in given.items() if value is not None}
    kept = set(OPTIONS) - {"schedule"}
    # Another method has options of its own: only the aim goes over, and what holds for the whole answer.
    if "method" in named and new.method != before.method:
        kept = {"preference", "target", "trace", "monitor"}
    if named & AIMS:
        kept -= AIMS
    return Steering(**{key: getattr(new if key in named else before, key) for key in kept | named})


def parts_of(steering: Steering) -> list[tuple[int, Steering]]:
    """(tokens after which it takes over, steering) of every part of a ``schedule``, the first at 0.

    A part is an object of keys of ``steering``, which change what stands beside the schedule, and of ``until``: how
    many tokens the answer has when the part ends. The last one has no ``until``.

    Raises:
        InputError: ``steering.schedule.<index>...``.
    """
    outside = replace(steering, schedule=None)
    parts: list[tuple[int, Steering]] = []
    start, last = 0, len(steering.schedule) - 1
    for index, raw in enumerate(steering.schedule):
        field = f"steering.schedule.{index}"
        if not isinstance(raw, Mapping):
            raise InputError(field, raw, "an object of until and keys of steering")
        # Parts follow each other: each begins where the one before ends, and only the last has no end.
        until = raw.get("until")
        if index == last and until is not None:
            raise InputError(f"{field}.until", until, reason="the last part holds to the end of the answer")
        if index < last and not (isinstance(until, int) and not isinstance(until, bool) and start < until < LAST):
            raise InputError(f"{field}.until", until, f"a whole number of tokens above {start}, where the part begins")
        try:
            parts.append((start, changed(outside, {key: value for key, value in raw.items() if key != "until"})))
        except InputError as error:
            raise inside(index, error) from None
        start = until or 0
    return parts


def inside(index: int, error: InputError) -> InputError:
    """``error`` about the steering of part ``index``, named as what it is in the request."""
    key = error.field.removeprefix("steering").removeprefix(".")
    return error.at(f"steering.schedule.{index}{'.' if key else ''}{key}")
