"""The shapes of what replies say of thoughts that were verified."""

from __future__ import annotations

from typing_extensions import TypedDict


class CheckedReply(TypedDict):
    """What the verifier said of the thought that ends with a token: how likely yes was, against no, and whether that
    ended it."""

    yes: float
    ends: bool


class VerifiedChoice(TypedDict):
    """The thought of the choice ``index``: how often it was verified, and after how many tokens of the choice it was
    ended by that; null where it was not."""

    index: int
    checks: int
    ended: int | None


class VerifierReply(TypedDict):
    """What may end thoughts of answers where a request does not say: after so many tokens (``every``) the base is
    asked (``ask``), and yes has to be more likely than ``above``."""

    every: int
    ask: str
    above: float
