"""What the engine tells metrics and health checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for metrics and health; counters grow from start."""

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
