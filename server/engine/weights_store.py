"""The models a step may run on: the plain ones with their banks, and weight sets merged from full-weight members on
demand."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.forward.loaded_model import LoadedModel
from ladle.server.engine.stats.failure_streak import FailureStreak
from ladle.server.engine.stats.stats import MergeStats
from ladle.server.engine.stats.step_counts import Tally

logger = logging.getLogger(__name__)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class WeightsStore:
    """Loaded models by the part of a WeightsKey that lives outside the bank; ``plain`` ones always stay.

    Merged sets are built one at a time on a thread of their own while steps go on, and kept least recently used first
    within ``budget`` bytes. A set in use is never dropped: ``in_use`` tells the keys of running sequences. All methods
    are for the engine thread.
    """

    def __init__(
        self,
        plain: Mapping[WeightsKey, LoadedModel],
        build: Callable[[WeightsKey], LoadedModel],
        budget: int,
        in_use: Callable[[], Iterable[WeightsKey]],
        note: Callable[[WeightsKey, bool], None] | None = None,
    ) -> None:
        """``note``: called before a set is built (True), and when one is dropped or could not be built (False)."""
        self.models: OrderedDict[WeightsKey, LoadedModel] = OrderedDict(plain)
        self.budget = budget
        self.hits = self.misses = self.evictions = self.failures = 0
        self._plain = {key.base_revision: key for key in plain}
        self._build = build
        self._in_use = in_use
        self._note = note or (lambda key, wanted: None)
        self._fresh: set[WeightsKey] = set()
        self._seconds = Tally(_SECONDS)
        self._streak = FailureStreak("merging full-weight members")
        self._builder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladle-merge")
        self._pending: tuple[WeightsKey, Future[LoadedModel]] | None = None

    def is_plain(self, key: WeightsKey) -> bool:
        """Whether ``key`` names a model as it was loaded, its bank included."""
        return key in self._plain.values()

    def set_nbytes(self, key: WeightsKey) -> int:
        """Bytes of the merged set ``key``: what its plain model takes, since their shapes are equal."""
        return self.models[self._plain[key.base_revision]].nbytes

    @property
    def used(self) -> int:
        """Bytes of the merged sets held now."""
        return sum(model.nbytes for key, model in list(self.models.items()) if not self.is_plain(key))

    def ready(self, key: WeightsKey) -> bool:
        """Whether a step may use ``key`` now; if not, its merge is started as soon as there is room and a free builder.

        Raises whatever the merge raised.
        """
        # Never blocks: a merge runs on the builder's thread, one at a time, and the scheduler asks again before each
        # step.
        self._collect(key)
        if key in self.models:
            if not self.is_plain(key):
                self.models.move_to_end(key)
            return True
        # Not there and nobody builds: begin, if unused sets can be dropped to fit it in.
        if self._pending is None and self._make_room(key):
            self.misses += 1
            self._note(key, True)
            self._pending = (key, self._builder.submit(self._timed, key))
        return False

    def _timed(self, key: WeightsKey) -> LoadedModel:
        """On the builder's thread."""
        start = time.monotonic()
        model = self._build(key)
        self._seconds.add(time.monotonic() - start)
        return model

    def use(self, keys: Iterable[WeightsKey]) -> None:
        """Count that a sequence is taken up which needs ``keys``: hits are those that it, or whoever came before it,
        did not have merged just now."""
        for key in set(keys):
            if key in self._fresh:
                self._fresh.remove(key)
            elif not self.is_plain(key):
                self.hits += 1

    def stats(self) -> MergeStats:
        """Counts of what was merged, reused and dropped. May be called from any thread."""
        return MergeStats(
            self.hits,
            self.misses,
            self.evictions,
            self.failures,
            self.used,
            self.budget,
            self._seconds.seen(),
            self._streak.reason,
        )

    def _collect(self, wanted: WeightsKey) -> None:
        """Take over a finished merge. One that failed raises for the sequence that wanted it, and is forgotten."""
        if self._pending is None or not self._pending[1].done():
            return
        key, future = self._pending
        error = future.exception()
        if error is None:
            self._streak.succeeded()
            self.models[key] = future.result()
            # Its first use is the miss that it was built for; uses after that are hits.
            self._fresh.add(key)
            self._pending = None
            return
        self.failures += 1
        self._streak.failed(error)
        self._note(key, False)
        # Only who asks for this set is told; for others the failure is of a request that has gone.
        if key == wanted:
            self._pending = None
            raise error
        logger.warning("the merge of a request that is gone failed: %s", error)
        self._pending = None

    def _make_room(self, wanted: WeightsKey) -> bool:
        """Drop unused sets until ``wanted`` fits; False while those in use leave no room."""
        # A merged set takes as much as its plain model, so that its size is known before it is built.
        in_use, size = set(self._in_use()), self.set_nbytes(wanted)
        # Least recently used first: the plain models stay, and so does what a running sequence computes with.
        for key in list(self.models):
            if self.used + size <= self.budget:
                break
            if not self.is_plain(key) and key not in in_use:
                self._drop(key)
                self.evictions += 1
        return self.used + size <= self.budget

    def drop_unused(self) -> int:
        """Drop every merged set that no running sequence uses; their number."""
        in_use = set(self._in_use())
        unused = [key for key in self.models if not self.is_plain(key) and key not in in_use]
        for key in unused:
            self._drop(key)
        return len(unused)

    def _drop(self, key: WeightsKey) -> None:
        del self.models[key]
        self._fresh.discard(key)
        self._note(key, False)

    def close(self) -> None:
        self._builder.shutdown(wait=True, cancel_futures=True)
