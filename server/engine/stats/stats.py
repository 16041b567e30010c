"""What an engine tells metrics and health checks, and the figures of several engines as those of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from ladle.server.engine.stats.step_counts import Distribution


@dataclass(frozen=True)
class MergeStats:
    """The cache of merged full-weight members.

    Attributes:
        hits: sets of weights that were found there, since the start.
        misses: sets that had to be merged.
        evictions: sets that were dropped for others.
        failures: merges that failed.
        used, budget: bytes that the cache holds, and those that it may hold.
        seconds: of every merge, how long it took; None before the first one.
        failing: why nobody should rely on merges now; None while they work.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0
    used: int = 0
    budget: int = 0
    seconds: Distribution | None = None
    failing: str | None = None


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for metrics and health; counters and distributions grow from the start of the engine.

    Attributes:
        running, waiting: sequences that hold a slot, and requests that wait for one.
        blocks_total, blocks_free: KV blocks, and those that nobody needs.
        lanes_free: rows of the lane table that nobody has.
        preemptions: how often a sequence gave up its blocks.
        prefix_queries, prefix_hits: prompt tokens looked up, and those whose state was there.
        steps: steps so far.
        step_rows: rows of the last step: tokens of all lanes, and candidates.
        distinct_weights, distinct_preferences: different sets of weights, and different wishes, in the last step.
        catch_up_tokens: by expert, tokens that it computed later than they came, because it had not been chosen before.
        merges: the cache of merged full weights.
        rows_by_step, step_seconds, preferences: of every step its rows, its time in seconds and its different wishes.
        integrity_checks: how often the bookkeeping was looked over while nothing ran.
        drafted_tokens, accepted_tokens: by who drafts (``ngram``, ``model``), tokens that were computed before they
            were drawn, and those of them that then were.
        guess_seconds: time that the draft model took.
    """

    running: int
    waiting: int
    blocks_total: int
    blocks_free: int
    lanes_free: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    steps: int
    step_rows: int
    distinct_weights: int
    catch_up_tokens: Mapping[str, int] = field(default_factory=dict)
    distinct_preferences: int = 0
    merges: MergeStats = MergeStats()
    rows_by_step: Distribution | None = None
    step_seconds: Distribution | None = None
    preferences: Distribution | None = None
    integrity_checks: int = 0
    drafted_tokens: Mapping[str, int] = field(default_factory=dict)
    accepted_tokens: Mapping[str, int] = field(default_factory=dict)
    guess_seconds: float = 0.0


NONE = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def total(engines: Iterable[EngineStats]) -> EngineStats:
    """Their sum, figure by figure."""
    result = NONE
    for stats in engines:
        result = _add(result, stats)
    return result


def past(stats: EngineStats) -> EngineStats:
    """What stays of an engine that is gone: counters, which must not go back, but nothing of what it held."""
    merges: MergeStats = replace(stats.merges, used=0, budget=0, failing=None)
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
    if isinstance(one, str):
        return one
    if isinstance(one, Distribution):
        counts = tuple(map(sum, zip(one.counts, other.counts, strict=True)))
        return Distribution(one.bounds, counts, one.total + other.total)
    # By kind: strings keep the first, distributions and mappings add up entry by entry, records field by field.
    if is_dataclass(one) and not isinstance(one, type):
        parts = {part.name: _add(getattr(one, part.name), getattr(other, part.name)) for part in fields(one)}
        return replace(one, **parts)
    if isinstance(one, Mapping):
        return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    return one + other
