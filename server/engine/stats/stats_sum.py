"""The figures of several engines as those of one, for metrics of a server that has had more than one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ladle.server.engine.stats.stats import EngineStats, MergeStats
from ladle.server.engine.stats.step_counts import Distribution

NONE = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def total(engines: Iterable[EngineStats]) -> EngineStats:
    """Their sum, figure by figure."""
    result = NONE
    for stats in engines:
        result = _add(result, stats)
    return result


def past(stats: EngineStats) -> EngineStats:
    """What stays of an engine that is gone: counters, which must not go back, but nothing of what it held."""
    merges: MergeStats = replace(stats.merges, used=0, budget=0)
    return replace(
        stats,
        running=0,
        waiting=0,
        blocks_total=0,
        blocks_free=0,
        lanes_free=0,
        distinct_weights=0,
        distinct_preferences=0,
        merges=merges,
    )


def _add(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, Distribution):
        counts = tuple(map(sum, zip(one.counts, other.counts, strict=True)))
        return Distribution(one.bounds, counts, one.total + other.total)
    if is_dataclass(one) and not isinstance(one, type):
        parts = {field.name: _add(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)}
        return replace(one, **parts)
    if isinstance(one, Mapping):
        return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    return one + other
