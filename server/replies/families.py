"""The shapes of what ``GET /v1/families`` says."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from ladle.server.replies.monitors import MonitorReply
from ladle.server.replies.thoughts import VerifierReply


class MethodReply(TypedDict):
    """Whether the family can serve a method, and if not, why; what a request may say to it.

    ``preference``: ``required``; ``optional`` where it merges the base under what is routed; ``ignored``. ``options``:
    the fields of ``steering`` it understands besides method, preference and trace, and ``needs`` those it cannot do
    without. ``strength`` is the default of that option, null where the method has none.
    """

    available: bool
    reason: str | None
    preference: Literal["required", "optional", "ignored"]
    options: list[str]
    needs: list[str]
    strength: float | None


class MemberReply(TypedDict):
    """One member of a family; ``rank`` is null for full weights and steering vectors."""

    name: str
    kind: str
    storage: str
    rank: int | None
    parameters: int
    objective: str | None
    rewards: list[float] | None


class MapPoint(TypedDict):
    """The quantiles that a preference is expected to reach, by objective."""

    preference: dict[str, float]
    quantiles: dict[str, float]


class CalibrationReply(TypedDict):
    """What ``steering.target`` may ask for: quantiles of the rewards of ``answers`` answers, from least to greatest by
    objective, with the method and options of ``steering``. ``map``: what
    preferences all over the simplex are expected to reach."""

    steering: dict[str, Any]
    answers: int
    reachable: dict[str, list[float]]
    map: list[MapPoint]


class ThinkingTagsReply(TypedDict):
    """The tags around the thought in front of an answer, the most tokens of a thought by reasoning effort, and what
    may end one where a request does not say; null where nothing does."""

    open: str
    close: str
    budgets: dict[str, int]
    verifier: VerifierReply | None


class FamilyReply(TypedDict):
    """Answer of ``GET /v1/families/{name}``; row j of ``matrix`` holds the reward weights of backbone j. Without a
    ``calibration`` of the members as they are there are no targets. ``sampling`` has the fields of a request that have
    a default of the family's own, and under ``methods`` those of one method; a preset may have its own. ``thinking``
    is null where thoughts cannot be told from answers; ``monitors`` watch every answer, whatever a request says."""

    name: str
    objectives: list[str]
    default_method: str
    matrix: list[list[float]] | None
    methods: dict[str, MethodReply]
    members: list[MemberReply]
    sampling: dict[str, Any]
    presets: dict[str, dict[str, Any]]
    calibration: CalibrationReply | None
    thinking: ThinkingTagsReply | None
    monitors: list[MonitorReply]


class FamilyList(TypedDict):
    """Answer of ``GET /v1/families``."""

    object: str
    data: list[FamilyReply]
