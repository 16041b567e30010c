"""The shapes of what replies say of what watched an answer."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class Judge(TypedDict):
    """What a monitor judges by: an explicit ``value`` at every token, or a question, ``ask``, after every sentence."""

    name: str
    value: NotRequired[str]
    ask: NotRequired[str]


# A key that is a word of Python's own.
_Bounds = TypedDict("_Bounds", {"above": float, "for": int, "hold": int})


class MonitorReply(Judge, _Bounds):
    """What watched an answer: it ends where ``for`` tokens, or sentences, in a row are above ``above``, and the last
    ``hold`` that were judged are not shown."""


class TripReply(TypedDict):
    """What ended the answer ``index``: monitor ``name``, which said ``value`` of what ends with the ``token``-th
    token."""

    index: int
    name: str
    token: int
    value: float


class WatchReply(TypedDict):
    """The monitors of an answer, and which of its choices were ended by them."""

    monitors: list[MonitorReply]
    stopped: list[TripReply]
