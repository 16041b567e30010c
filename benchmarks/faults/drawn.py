"""One generated request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drawn:
    """A request.

    Attributes:
        kind: ``sound`` is one that may well be served, ``mutated`` a sound one in which values were replaced,
            ``nested``, ``split`` and ``huge`` a sound one with such a text in it, ``garbage`` no sensible JSON,
            ``kept`` one about an answer that was given before.
        sequences: choices that a sound one asks for.
    """

    path: str
    body: bytes
    kind: str
    stream: bool = False
    sequences: int = 1
    method: str = "POST"
