"""What the engine tells metrics and health checks."""

from __future__ import annotations

from dataclasses import dataclass


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
