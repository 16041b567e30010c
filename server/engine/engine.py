"""The engine: one thread that turns submitted requests into tokens, step by step."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from ladle.merging.family.family import Family
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.admission import check_request, check_schedule
from ladle.server.engine.block_search import BlockSearch, worth
from ladle.server.engine.config import EngineConfig
from ladle.server.engine.device import allocator
from ladle.server.engine.device.device import make_current, require_working
from ladle.server.engine.kv.block_manager import BlockManager
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.model_runner import ModelRunner
from ladle.server.engine.request_tracker import RequestTracker, Sink
from ladle.server.engine.requests.answer import Answer, not_finite, without_token
from ladle.server.engine.requests.queue import WaitingRoom
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.requests.tokenizer import eos_ids, load_tokenizer
from ladle.server.engine.schedule.prefill_pace import PrefillPace
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import StepPlan
from ladle.server.engine.scored_answer import ScoredAnswer
from ladle.server.engine.scores.prompt_scores import ROW_BYTES
from ladle.server.engine.scores.sampler import Sampler
from ladle.server.engine.served_models import ServedModels
from ladle.server.engine.stats.idle_check import IdleCheck, IdleChecks
from ladle.server.engine.stats.stats import EngineStats
from ladle.server.engine.stats.step_counts import StepCounts

logger = logging.getLogger(__name__)


class Engine:
    """Serves one family. ``submit`` and ``cancel`` may be called from any thread; outputs arrive on the engine thread,
    all those of one step in one call of the request's sink."""

    def __init__(self, family: Family, config: EngineConfig | None = None) -> None:
        """Load the model and reserve the KV pool. Raises FamilyError, InputError."""
        self.family = family
        self.config = config = config or EngineConfig()
        allocator.prepare()
        self.device = config.resolve_device()
        make_current(self.device)
        self._wake = threading.Condition()
        self.tokenizer = load_tokenizer(family.base_path)
        self.models = models = ServedModels.shared(family, config, self.device, self._weights_in_use, self._look_up)
        self.store = models.store
        self.vocabulary = models.vocabulary
        # The base's own first: the family's template may bring another eos_token.
        self.eos = eos_ids(models.base.model, self.tokenizer) | family.conversation.dress(self.tokenizer)
        self.max_context = models.max_context
        lanes, dtype = config.lanes, models.score_dtype
        table = LaneTable(lanes, self.max_context, models.members, dtype, self.device, models.vectors)
        self.blocks = BlockManager(models.blocks)
        self.scheduler = Scheduler(
            self.blocks,
            table,
            config.max_sequences,
            max(config.max_batch_tokens, config.lanes + 2 * BLOCK_SIZE),
            config.prefix_cache,
            ready=self._weights_ready,
            judged_rows=max(config.lanes, ROW_BYTES // (4 * self.vocabulary)),
        )
        self.scheduler.pace = PrefillPace(config.prefill_slowdown)
        experts = 0 if models.router is None else models.router.experts
        self.sampler = Sampler(config.max_sequences, self.device, experts, self.eos)
        graphs = config.cuda_graphs and config.tensor_parallel == 1
        self.runner = ModelRunner(models, self.scheduler, self.sampler, self.device, graphs)
        self.tracker = RequestTracker(self.scheduler, self.cancel)
        self._sequences = self.tracker.entries
        self._searches: dict[str, BlockSearch | ScoredAnswer] = {}
        self._inbox: deque[tuple[Sequence, Sink] | str | Callable[[], None]] = deque()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failed: list[tuple[Sequence, str]] = []
        self.counts = StepCounts(family.experts)
        self.room = WaitingRoom(config.max_queue, config.max_queue_tokens)
        self.idle = IdleCheck(self.check_idle)
        self._trimmer = allocator.Trimmer()

    # -- from any thread ------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ladle-engine", daemon=True)
        self._thread.start()

    def shutdown(self, deadline_s: float = 0.0, patience_s: float | None = None) -> None:
        """Let running requests finish for up to ``deadline_s`` seconds, abort the rest, stop the thread.

        A step and a merge cannot be interrupted; whether one still runs after ``patience_s`` seconds, ``alive`` says.
        """
        until = time.monotonic() + deadline_s
        while self.alive and (self.tracker or self._inbox) and time.monotonic() < until:
            time.sleep(0.02)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(patience_s)
        if not self.alive:
            self.models.close()

    def check(self, request: GenerationRequest) -> list[Lane]:
        """The lanes of a request. Raises InputError for one that can never run."""
        return check_request(request, self.models, self.config, self.max_context, self.blocks.total)

    def form(self) -> dict[str, str]:
        """Which forms of a step are in force, by name: what decides, beside the request, how scores are rounded."""
        weights, activations = self.config.resolve_dtypes(self.device)
        return {
            "device": str(self.device),
            "weights": str(weights).removeprefix("torch."),
            "activations": str(activations).removeprefix("torch."),
            "quantized": self.config.quantize,
            "layers": "compiled" if self.models.base.compiled else "gated",
            "cuda_graphs": "on" if self.runner.recorded else "off",
            "processes": str(self.config.tensor_parallel),
            "reproducible": "yes" if self.config.reproducible else "no",
        }

    def submit(self, request: GenerationRequest, sink: Sink) -> None:
        """Queue ``request``; ``sink`` gets its outputs, the last with a finish reason. Raises InputError, QueueFull."""
        sequence = Sequence(request, self.check(request), changes=check_schedule(request, self.check))
        sequence.ticket = self.room.enter(request.prompt_cost)
        with self._wake:
            if self._stopping:
                sequence.ticket.leave()
                raise RuntimeError("the engine is shutting down")
            self._inbox.append((sequence, sink))
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Forget a request; its lanes are free before the next step. Unknown or finished ids are fine."""
        with self._wake:
            self._inbox.append(request_id)
            self._wake.notify()

    def between_steps(self, work: Callable[[], None]) -> None:
        """Run ``work``, which must not raise, on the engine's thread before its next step. Raises RuntimeError."""
        with self._wake:
            if self._stopping:
                raise RuntimeError("the engine is shutting down")
            self._inbox.append(work)
            self._wake.notify()

    def stats(self) -> EngineStats:
        scheduler, counts = self.scheduler, self.counts
        return EngineStats(
            running=len(scheduler.running),
            waiting=self._waiting(),
            blocks_total=self.blocks.total,
            blocks_free=self.blocks.free,
            lanes_free=scheduler.table.free,
            preemptions=scheduler.preemptions,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            steps=counts.steps,
            step_rows=self.runner.rows,
            distinct_weights=counts.weights,
            catch_up_tokens=dict(counts.late),
            distinct_preferences=counts.preferences,
            merges=self.store.stats(),
            rows=counts.rows.seen(),
            step_seconds=counts.seconds.seen(),
            preferences=counts.mixed.seen(),
            integrity_checks=self.idle.seen().passed,
        )

    def idle_checks(self) -> IdleChecks:
        """How often the bookkeeping was looked over while nothing ran; had it ever been wrong, the engine would have
        stopped."""
        return self.idle.seen()

    def _waiting(self) -> int:
        return len(self.scheduler.waiting) + sum(isinstance(item, tuple) for item in list(self._inbox))

    # -- on the engine thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason, error = "abort", None
        try:
            make_current(self.device)
            self._loop()
        except BaseException as failure:
            # The bookkeeping itself failed, or the device: no further step can be trusted. Nobody is left waiting, and
            # `alive` says the rest.
            logger.critical("the engine stops", exc_info=True)
            reason, error = "error", f"{type(failure).__name__} in the engine"
        with self._wake:
            self._stopping = True
            inbox, self._inbox = list(self._inbox), deque()
        self._receive(inbox)
        self.tracker.end_all(reason, error)
        self.models.leave()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._inbox and not self._stopping and not self._has_work():
                    pause = self.idle.due_in()
                    if pause == 0:
                        break
                    self.models.require_all()  # whoever is lost from now on, wakes this thread
                    self._wake.wait(pause)
                if self._stopping:
                    return
                idle = not self._inbox and not self._has_work()
            if idle:
                self._trimmer.trim()
                self.idle.run()
            elif not self.step():
                # Everything that waits, waits for weights that are being merged.
                time.sleep(0.005)

    def step(self) -> bool:
        """Take in what was submitted and compute one step; whether there was anything to compute.

        The engine thread's body. Without ``start`` a caller may drive the engine with it, from one thread.
        """
        self.idle.worked()
        with self._wake:
            inbox, self._inbox = list(self._inbox), deque()
        self._receive(inbox)
        plan = self.scheduler.schedule()
        while self._failed:
            sequence, error = self._failed.pop()
            self.tracker.end(sequence, "error", error)
        if plan:
            self._step(plan)
        self._trimmer.tick()
        return bool(plan)

    def _look_up(self) -> None:
        """Let the engine's thread see, from any other, what has changed."""
        with self._wake:
            self._wake.notify()

    def _weights_in_use(self) -> set[WeightsKey]:
        return {lane.materialised for sequence in self.scheduler.running for lane in sequence.lanes}

    def _weights_ready(self, sequence: Sequence) -> bool:
        try:
            return all([self.store.ready(lane.materialised) for lane in sequence.lanes])
        except Exception as error:
            logger.exception("a merge failed")
            self._failed.append((sequence, f"{type(error).__name__} while merging weights"))
            return False

    def _has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def _receive(self, inbox: Iterable[tuple[Sequence, Sink] | str | Callable[[], None]]) -> None:
        for item in inbox:
            if isinstance(item, str):
                self._drop(item)
                continue
            if not isinstance(item, tuple):
                item()
                continue
            sequence, sink = item
            if sequence.request_id in self.tracker or sequence.request_id in self._searches:
                sequence.leave_queue()
                self.tracker.deliver(sink, [without_token(sequence, "error", "a request with this id is running", "")])
                continue
            try:
                self._begin(sequence, sink)
            except Exception as error:
                logger.exception("a request could not begin")
                self._drop(sequence.request_id)
                sequence.leave_queue()
                self.tracker.deliver(
                    sink, [without_token(sequence, "error", f"{type(error).__name__} in the engine", "")]
                )

    def _begin(self, sequence: Sequence, sink: Sink) -> None:
        if sequence.request.plan.blocks is not None or sequence.request.plan.rank is not None:
            self._lead(sequence, sink)
        else:
            self._add(sequence, sink)

    def _add(self, sequence: Sequence, sink: Sink) -> None:
        self.tracker.add(sequence, Answer(sequence.request, self.tokenizer, self.eos), sink)

    def _lead(self, whole: Sequence, sink: Sink) -> None:
        """Begin a request that is made of several sequences."""
        request = whole.request

        def deliver(outputs: list[StepOutput]) -> None:
            if outputs[-1].finish_reason is not None:
                self._searches.pop(request.request_id, None)
            self.tracker.deliver(sink, outputs)

        def run(part: Sequence, sink: Sink) -> None:
            part.ticket = whole.ticket  # it has had its turn when the first of its parts has
            self._add(part, sink)

        search: BlockSearch | ScoredAnswer
        if request.plan.rank is not None:
            search = ScoredAnswer(whole, deliver, run, self._drop, self.models.lanes)
        else:
            answer = Answer(request, self.tokenizer, self.eos)
            search = BlockSearch(request, answer, deliver, run, self._drop, self.models.lanes)
        self._searches[request.request_id] = search
        search.begin()

    def _drop(self, request_id: str) -> None:
        """Forget a request without a word."""
        if request_id in self.tracker:
            self.tracker.drop(request_id)
        elif request_id in self._searches:
            self._searches.pop(request_id).cancel()

    def _step(self, plan: StepPlan) -> None:
        start = time.monotonic()
        for sequence in plan.sequences:
            if sequence.admitted_at is None:
                sequence.admitted_at = start
                sequence.leave_queue()
        plan.account()
        admitted = self.scheduler.take_admitted()
        try:
            self.runner.clear(self.scheduler.take_fresh())
            for sequence in admitted:
                self.sampler.admit(sequence, self.vocabulary)
                self.store.use(lane.materialised for lane in sequence.lanes)
            result = self.runner.step(plan)
        except Exception as error:
            # Only the requests of this step are lost; the engine goes on with the others.
            logger.exception("a step failed")
            for sequence in dict.fromkeys([*plan.sequences, *admitted]):
                self.tracker.end(sequence, "error", f"{type(error).__name__} in the engine")
            require_working(self.device)
            self.models.require_all()
            return
        self.scheduler.advance(plan, result.caught_up.behind)
        for chunk in result.caught_up.chunks:
            self.scheduler.extend(chunk.sequence, chunk.lane, chunk.count)
        seconds = time.monotonic() - start
        self.scheduler.pace.note(plan, seconds)
        self.counts.step(plan.sequences, self.runner.rows, seconds, result.caught_up.missed())
        outputs: dict[Sink, list[StepOutput]] = {}
        for sequence in plan.sampling:
            if sequence in result.caught_up.behind:
                continue
            value = worth(result.values[sequence]) if sequence in result.values else None
            if value is None and (refused := result.draws[sequence].error) is not None:
                self.tracker.end(sequence, "error", refused)
                continue
            if math.isnan(result.draws[sequence].logprob if value is None else value):
                self.tracker.end(sequence, "error", not_finite(sequence.request.plan))
                continue
            sink = self.tracker.sink(sequence)
            try:
                if value is None:
                    output = self.tracker.emit(sequence, result.draws[sequence], sequence in result.kept)
                else:
                    self.tracker.forget(sequence)
                    output = replace(without_token(sequence, "stop", None, ""), value=value)
                outputs.setdefault(sink, []).append(output)
            except Exception as error:
                logger.exception("a token could not be turned into text")
                self.tracker.end(sequence, "error", f"{type(error).__name__} in the engine")
        for sink, batch in outputs.items():
            self.tracker.deliver(sink, batch)

    def check_integrity(self) -> None:
        """Raise AssertionError unless blocks, rows and slots add up. For the thread that steps."""
        self.blocks.check_integrity(self.scheduler.held_blocks())
        self.scheduler.check_integrity()

    def check_idle(self) -> None:
        """Raise AssertionError unless everything is free, as it must be when there is nothing to do."""
        self.check_integrity()
        held = {
            "blocks": self.blocks.total - self.blocks.free,
            "lane rows": self.config.lanes - self.scheduler.table.free,
            "sequences": len(self.tracker),
            "block searches and scored answers": len(self._searches),
        }
        if any(held.values()):
            raise AssertionError(
                f"nothing runs, but {', '.join(f'{n} {name}' for name, n in held.items() if n)} are held"
            )
