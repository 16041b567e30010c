"""What a method is: a name, whether a family can serve it, and how a request becomes a plan."""

from dataclasses import dataclass
from typing import Protocol

from ladle.guidance.plan import Plan, Steering
from ladle.merging.family import Family


@dataclass(frozen=True)
class Availability:
    """Whether a family can serve a method; ``reason`` says why not and is empty otherwise."""

    available: bool
    reason: str = ""


class Method(Protocol):
    """One registered method."""

    name: str
    options: frozenset[str]
    """Steering fields it understands besides method, preference and trace."""

    def availability(self, family: Family) -> Availability:
        """Whether ``family`` has what the method needs."""

    def plan(self, family: Family, steering: Steering) -> Plan:
        """The plan of a request. Raises InputError."""
