"""What a shell offers for the values of options: names that the server knows, and nothing while none answers."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from ladle.clients.client import Client
from ladle.clients.errors import LadleError
from ladle.clients.family_responses import Family
from ladle.option_kinds import Flag, OneOf
from ladle.steering_options import OPTIONS

_T = TypeVar("_T")
_PATIENCE = 0.5
"""Seconds that somebody waits who has pressed a key."""


def methods(incomplete: str) -> list[str]:
    """Names of methods that a family served here can do."""
    names = (name for family in _families() for name, method in family.methods.items() if method.available)
    return _matching(names, incomplete)


def objectives(incomplete: str) -> list[str]:
    """``NAME=`` of the next objective of ``a=1,b=``..., those that are written already left out."""
    written, comma, start = incomplete.rpartition(",")
    taken = {part.partition("=")[0] for part in written.split(",")}
    names = (name for family in _families() for name in family.objectives if name not in taken)
    return [f"{written}{comma}{name}=" for name in _matching(names, start)]


def steering(incomplete: str) -> list[str]:
    """``KEY=`` of a steering option, and after it the values of one that has names to choose from."""
    key, sign, start = incomplete.partition("=")
    if not sign:
        return [f"{name}=" for name in _matching(iter(OPTIONS), key)]
    kind = OPTIONS[key].kind if key in OPTIONS else None
    names = kind.names if isinstance(kind, OneOf) else ("true", "false") if isinstance(kind, Flag) else ()
    return [f"{key}={name}" for name in _matching(iter(names), start)]


def models(incomplete: str) -> list[str]:
    """What may stand in ``model``."""
    return _matching((model.id for model in _asked(Client.models)), incomplete)


def _families() -> list[Family]:
    return _asked(Client.families)


def _asked(question: Callable[[Client], list[_T]]) -> list[_T]:
    try:
        with Client(timeout=_PATIENCE, max_retries=0) as client:
            return question(client)
    except LadleError:
        return []


def _matching(names: Iterator[str], start: str) -> list[str]:
    return sorted({name for name in names if name.startswith(start)})
