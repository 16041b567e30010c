"""The shapes of what replies say of an answer whose steering changed on the way."""

from __future__ import annotations

from typing_extensions import TypedDict


class SteeringPart(TypedDict):
    """A part of an answer whose steering changed on the way. ``starts``: of each choice the index of the first token
    that the part gave, null where it gave none."""

    starts: list[int | None]
    method: str
    preference: dict[str, float] | None
    coefficients: dict[str, float]
    warnings: list[str]


class BegunPart(TypedDict):
    """What steers an answer from a token on."""

    method: str
    preference: dict[str, float] | None
