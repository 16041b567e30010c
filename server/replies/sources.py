"""The shapes of the sources of a plan in replies."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class PromptReply(TypedDict):
    """How a source sees the prompt: under the system message ``text``, or ``text`` in its place."""

    kind: str
    text: str


class SourceReply(TypedDict):
    """One source of next-token scores, or of values where it has a ``head``. ``model`` is there for another model than
    the base, ``prompt`` where it sees another than the request's own."""

    name: str
    role: str
    weight: float
    coefficients: dict[str, float]
    model: NotRequired[str]
    prompt: NotRequired[PromptReply]
    head: NotRequired[dict[str, float]]
