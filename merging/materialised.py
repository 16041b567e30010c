"""Materialised merges: complete sets of weights in an LRU cache with a byte budget, for full-weight members."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ladle.merging.merge import Merge, TensorSpec
from ladle.merging.weights_key import WeightsKey


class BudgetError(RuntimeError):
    """Merged weights do not fit the cache's budget: too large for it, or everything else is in use."""


@dataclass
class _Entry:
    layout: dict[str, TensorSpec]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    ready: bool = False
    uses: int = 0

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.layout.values())


@dataclass(frozen=True)
class CacheStats:
    """Counters since the start, and what is held now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    entries_in_use: int
    bytes: int
    budget: int


class MaterialisedCache:
    """Merged weights by ``WeightsKey``.

    Thread-safe. Weights that are not there are merged once, however many threads ask; an entry in use is never
    evicted; the memory of an evicted entry is used again, so that steady state allocates nothing.
    """

    def __init__(self, merge: Merge, budget_bytes: int, dtype: torch.dtype | None = None) -> None:
        """
        Args:
            merge: what builds the weights; the cache calls it from one thread at a time.
            budget_bytes: for all entries together.
            dtype: of floating tensors; None keeps the base's.
        """
        self._merge = merge
        self._budget = budget_bytes
        self._dtype = dtype
        self._entries: OrderedDict[WeightsKey, _Entry] = OrderedDict()  # least recently used first
        self._changed = threading.Condition()
        self._building = threading.Lock()
        self._hits = self._misses = self._evictions = 0

    @contextmanager
    def lease(self, key: WeightsKey, timeout_s: float = 0.0) -> Iterator[Mapping[str, torch.Tensor]]:
        """The weights of ``key`` by tensor name, which stay as they are inside the ``with`` block; read-only.

        They are merged from ``key.coefficients()``, so they are a function of the key alone.

        Args:
            key: its base revision is the caller's business; coefficients name members of the merge.
            timeout_s: how long to wait for others to leave entries when all of the budget is in use.

        Raises:
            BudgetError: one entry exceeds the budget, or nothing was released in time.
            KeyError: an unknown member.
        """
        entry = self._acquire(key, timeout_s)
        try:
            yield entry.tensors
        finally:
            with self._changed:
                entry.uses -= 1
                self._changed.notify_all()

    def stats(self) -> CacheStats:
        """A consistent snapshot."""
        with self._changed:
            entries = list(self._entries.values())
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                entries=len(entries),
                entries_in_use=sum(entry.uses > 0 for entry in entries),
                bytes=sum(entry.nbytes for entry in entries),
                budget=self._budget,
            )

    def _acquire(self, key: WeightsKey, timeout_s: float) -> _Entry:
        """The entry of ``key``, ready and counted as in use."""
        with self._changed:
            while True:
                if (entry := self._entries.get(key)) is None:
                    entry = _Entry(self._merge.layout(key.coefficients(), self._dtype), uses=1)
                    reusable = self._make_room(key, entry.nbytes, timeout_s)
                    if key not in self._entries:  # it may have come while we waited for room
                        break
                elif entry.ready:
                    self._hits += 1
                    entry.uses += 1
                    self._entries.move_to_end(key)
                    return entry
                else:
                    # Another thread merges it. Should that fail, the entry is gone and we try ourselves.
                    self._changed.wait()
            self._misses += 1
            self._entries[key] = entry
        try:
            with self._building:
                entry.tensors = _allocate(entry.layout, reusable)
                self._merge.into(entry.tensors, key.coefficients())
        except BaseException:
            with self._changed:
                del self._entries[key]
                self._changed.notify_all()
            raise
        with self._changed:
            entry.ready = True
            self._changed.notify_all()
        return entry

    def _make_room(self, key: WeightsKey, needed: int, timeout_s: float) -> dict[str, torch.Tensor]:
        """Evict until ``needed`` bytes fit; returns the tensors of the last entry evicted, to be used again.

        Called with the lock held; waiting releases it.
        """
        if needed > self._budget:
            raise BudgetError(
                f"one set of merged weights takes {needed:,} bytes, but the budget of the cache is {self._budget:,}"
            )
        freed: dict[str, torch.Tensor] = {}
        while sum(entry.nbytes for entry in self._entries.values()) + needed > self._budget:
            if key in self._entries:
                return {}
            victim = next((other for other, entry in self._entries.items() if entry.ready and entry.uses == 0), None)
            if victim is not None:
                freed = self._entries.pop(victim).tensors
                self._evictions += 1
            elif not self._changed.wait_for(self._can_evict, timeout_s):
                raise BudgetError(
                    f"all {len(self._entries)} sets of merged weights that fit the budget of {self._budget:,} bytes "
                    "are in use"
                )
        return freed

    def _can_evict(self) -> bool:
        return any(entry.ready and entry.uses == 0 for entry in self._entries.values())


def _allocate(layout: dict[str, TensorSpec], reusable: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Memory for ``layout``, taken from ``reusable`` where name, shape and dtype agree."""
    tensors = {}
    for name, spec in layout.items():
        old = reusable.get(name)
        same = old is not None and tuple(old.shape) == spec.shape and old.dtype == spec.dtype
        tensors[name] = old if same and old is not None else spec.empty()
    return tensors
