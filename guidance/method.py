"""What a method is: a name, whether a family can serve it, and how a request becomes a plan."""

from dataclasses import dataclass
from typing import Protocol

from ladle.guidance.plan import Plan, Steering
from ladle.merging.exceptions import CodedText
from ladle.merging.family.family import Family


@dataclass(frozen=True)
class Availability:
    """Whether a family can serve a method.

    Attributes:
        available: whether it can.
        reason: why not; empty where it can.
    """

    available: bool
    reason: str = ""


def ignores_preference(name: str) -> CodedText:
    """The warning of the method ``name`` that a preference says nothing to it."""
    return CodedText("preference_ignored", f"method {name} ignores the preference")


class Method(Protocol):
    """One registered method."""

    name: str
    options: frozenset[str]
    """Steering fields it understands besides method, preference and trace."""
    takes_preference: bool
    """Whether the method requires a preference. Otherwise one is ignored with a warning or, by methods that route, used
    to merge the base."""

    normalizations: tuple[str, ...]
    """Values of ``normalize`` that it knows, if that is one of its options."""

    needs: frozenset[str]
    """Options without which it cannot be resolved, whatever the preference."""

    def availability(self, family: Family, stated: bool = False) -> Availability:
        """Whether ``family`` has what the method needs; ``stated``: for a request that states ``coefficients``."""

    def plan(self, family: Family, steering: Steering) -> Plan:
        """The plan of a request. Raises InputError."""
