"""What a server's process holds between loads, and whether that grows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from ladle.benchmarks.faults.server_under_test import ServerUnderTest


@dataclass(frozen=True)
class Look:
    """One look at a server's memory.

    Attributes:
        resident: bytes.
        requests: that had come until then.
    """

    resident: int
    requests: int


@dataclass
class MemoryWatch:
    """Looks at a server's memory."""

    server: ServerUnderTest
    looks: list[Look] = field(default_factory=list)

    def look(self, requests: int) -> None:
        """Look now, ``requests`` requests after the beginning."""
        if self.server.alive:
            self.looks.append(Look(self.server.resident(), requests))

    def growth(self, settled: Callable[[Look], bool]) -> dict[str, float]:
        """Columns for a row of results, over the looks from the first ``settled`` one on.

        The first third of the looks is compared with the last: ``resident_growth`` by their medians, ``kept_growth`` by
        the least that either saw, which is what never went back. Nothing for a server that had ended before the first.
        """
        if not self.looks:
            return {}
        first = next((place for place, look in enumerate(self.looks) if settled(look)), len(self.looks) - 1)
        sizes = [look.resident for look in self.looks[first:]]
        third = -(-len(sizes) // 3)
        warm, end = sizes[:third], sizes[-third:]
        return {
            "resident_warm_mb": round(statistics.median(warm) / 1e6, 1),
            "resident_end_mb": round(statistics.median(end) / 1e6, 1),
            "resident_growth": round(statistics.median(end) / statistics.median(warm) - 1, 4),
            "kept_growth": round(min(end) / min(warm) - 1, 4),
        }
