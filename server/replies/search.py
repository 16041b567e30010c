"""The shapes of what replies say of an answer that was searched block by block."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from ladle.server.replies.sources import SourceReply


class BlockReply(TypedDict):
    """How the block that begins with a token was chosen: how many continuations were drawn of the text before it
    (``draws``), the ``score`` of the text that ends with it (null where there was nothing to choose from), and where
    the draws follow it, the ``entropy`` of the token's distribution in nats."""

    draws: int
    score: float | None
    entropy: NotRequired[float]


class SearchedChoice(TypedDict):
    """What was drawn for the choice ``index``: its ``blocks``, and of all ``draws`` the ``tokens``, kept or not."""

    index: int
    blocks: int
    draws: int
    tokens: int


class SearchReply(TypedDict):
    """How an answer was searched; ``sources`` judge, and are none for ``likelihood``."""

    by: str
    until: str | int
    draws: int
    entropy: NotRequired[list[float]]
    beam: int
    sources: list[SourceReply]
    choices: NotRequired[list[SearchedChoice]]
