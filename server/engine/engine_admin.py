"""What an operator may do to a running engine: look at its caches, empty them, end it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from ladle.server.engine.device import allocator
from ladle.server.engine.engine import Engine
from ladle.server.engine.kv.cache import BLOCK_SIZE

T = TypeVar("T")


@dataclass(frozen=True)
class CacheStats:
    """What an engine keeps between requests; counters are since its start.

    Attributes:
        block_tokens: tokens that one KV block holds.
        blocks, blocks_free: KV blocks, and those that nobody needs.
        prefix_blocks: blocks whose state may be reused.
        prefix_queries, prefix_hits: prompt tokens looked up, and those whose state was found.
        merged_sets, merged_bytes, merged_limit_bytes: sets of merged full weights that are held, their bytes, and the
            bytes that they may take.
        merged_hits, merged_misses, merged_evictions: sets that were found, that had to be merged, that were dropped.
    """

    block_tokens: int
    blocks: int
    blocks_free: int
    prefix_blocks: int
    prefix_queries: int
    prefix_hits: int
    merged_sets: int
    merged_bytes: int
    merged_limit_bytes: int
    merged_hits: int
    merged_misses: int
    merged_evictions: int


class EngineAdmin:
    """What administrators ask of an engine, from any thread. What touches the engine's own books is done on its thread,
    between two steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def alive(self) -> bool:
        return self._engine.alive

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of weights, merged ones included, and of the KV pool."""
        models = self._engine.models
        kv = sum(layer.nbytes for cache in models.caches.values() for layer in cache.layers)
        return sum(model.nbytes for model in list(self._engine.store.models.values())), kv

    def caches(self) -> CacheStats:
        """The caches as they are now."""
        engine, stats = self._engine, self._engine.stats()
        merged = sum(not engine.store.is_plain(key) for key in list(engine.store.models))
        return CacheStats(
            block_tokens=BLOCK_SIZE,
            blocks=stats.blocks_total,
            blocks_free=stats.blocks_free,
            prefix_blocks=engine.blocks.remembered,
            prefix_queries=stats.prefix_queries,
            prefix_hits=stats.prefix_hits,
            merged_sets=merged,
            merged_bytes=stats.merges.used,
            merged_limit_bytes=stats.merges.budget,
            merged_hits=stats.merges.hits,
            merged_misses=stats.merges.misses,
            merged_evictions=stats.merges.evictions,
        )

    def forget_prefixes(self) -> Future[int]:
        """Let no request reuse what was computed before; the number of blocks forgotten. Running ones keep theirs."""

        def forget() -> int:
            count = self._engine.blocks.remembered
            self._engine.blocks.forget_prefixes()
            return count

        return self._between_steps(forget)

    def drop_merged(self) -> Future[int]:
        """Drop the merged sets that no running request uses; their number."""

        def drop() -> int:
            count = self._engine.store.drop_unused()
            if count:
                allocator.give_back()
            return count

        return self._between_steps(drop)

    def close(self, patience_s: float | None = None) -> None:
        """End the engine, whatever runs on it; returns when its thread has, or after ``patience_s`` seconds: a step
        cannot be interrupted."""
        self._engine.shutdown(0.0, patience_s)

    def _between_steps(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                # An exception goes to whoever asked: the engine's thread must not end by it.
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._engine.between_steps(run)
        return future
