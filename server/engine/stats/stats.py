"""What the engine tells metrics and health checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ladle.server.engine.stats.step_counts import Distribution


@dataclass(frozen=True)
class MergeStats:
    """The cache of merged full-weight members: sets found there and sets merged, dropped and failed since the start;
    bytes ``used`` of ``budget``; seconds a merge."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0
    used: int = 0
    budget: int = 0
    seconds: Distribution | None = None


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for metrics and health; counters and distributions grow from start."""

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
    """By expert: tokens that it computed later than they came, because it had not been chosen before."""
    distinct_preferences: int = 0
    merges: MergeStats = MergeStats()
    rows: Distribution | None = None
    step_seconds: Distribution | None = None
    preferences: Distribution | None = None
    integrity_checks: int = 0
    """How often the bookkeeping was looked over while nothing ran."""
