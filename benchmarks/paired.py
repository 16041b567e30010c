"""Sides of one run compared round by round, so that a drifting machine does not decide."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence


def interleave(sides: Mapping[str, Callable[[], Iterable[float]]], rounds: int) -> dict[str, list[float]]:
    """The median seconds of every side in every round; the first round warms up and is left out."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            median = statistics.median(side())
            if turn:
                times[name].append(median)
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Over the rounds."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, str]:
    """Median and quartiles of one / other, round by round."""
    paired = [a / b for a, b in zip(one, other, strict=True)]
    low, _, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else (paired[0],) * 3
    return round(statistics.median(paired), 3), f"{low:.2f}-{high:.2f}"


def over_plain(sides: Mapping[str, Callable[[], Iterable[float]]], rounds: int) -> dict[str, object]:
    """Columns for a row of results: every side's median in milliseconds, and the ratio of each to the one that is
    called ``plain``, round by round, with its quartiles."""
    times = interleave(sides, rounds)
    row: dict[str, object] = {"rounds": rounds}
    row |= {f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in medians(times).items()}
    for name in times:
        if name != "plain":
            row[f"{name}_over_plain"], row[f"{name}_quartiles"] = ratio(times[name], times["plain"])
    return row
