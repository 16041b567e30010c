"""The shape of the answer of ``POST /v1/score``."""

from __future__ import annotations

from typing_extensions import TypedDict

from ladle.server.replies.reply_types import SteeringReply
from ladle.server.replies.usage import Usage


class ScorePart(TypedDict):
    """What one source says of a text: a log-probability in nats, or an explicit value."""

    name: str
    weight: float
    value: float


class ScoredText(TypedDict):
    """The score of one text: the sum of ``weight * value`` over its ``parts``, divided by its tokens where ``per`` is
    ``token``; without parts, for ``likelihood``, its log-probability under the plan."""

    index: int
    score: float
    tokens: int
    parts: list[ScorePart]


class Scores(TypedDict):
    """Answer of ``POST /v1/score``: the texts in the order in which they were sent; the greater a score, the better."""

    id: str
    object: str
    model: str
    created: int
    scores: list[ScoredText]
    usage: Usage
    steering: SteeringReply
