"""The engine: one thread that turns submitted requests into tokens, step by step."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

from ladle.merging.family.family import Family
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.admission import check_request, check_schedule
from ladle.server.engine.device import allocator
from ladle.server.engine.device.device import make_current, require_working
from ladle.server.engine.drafting.draft_model import model_guesses
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.kv.block_manager import BlockManager
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.led_requests import LedRequests
from ladle.server.engine.model_runner import ModelRunner
from ladle.server.engine.request_tracker import RequestTracker, Sink
from ladle.server.engine.requests.answer import without_token
from ladle.server.engine.requests.queue import WaitingRoom
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.requests.tokenizer import eos_ids, load_tokenizer
from ladle.server.engine.schedule.drafts import Drafts
from ladle.server.engine.schedule.prefill_pace import PrefillPace
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import StepPlan
from ladle.server.engine.scores.prompt_scores import ROW_BYTES
from ladle.server.engine.scores.sampler import Sampler
from ladle.server.engine.served_models import ServedModels
from ladle.server.engine.speculation import Speculation
from ladle.server.engine.stats.idle_check import IdleCheck, IdleChecks
from ladle.server.engine.stats.stats import EngineStats
from ladle.server.engine.stats.step_counts import StepCounts
from ladle.server.engine.step_result import StepResult

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
        guesses = model_guesses(models, self.sampler, config)
        drafts = Drafts(self.scheduler, config.draft_tokens, guesses)
        self.speculation = Speculation(self.scheduler, self.runner, drafts, self._tell, self._lose)
        self.led = LedRequests(self.tracker, self.tokenizer, self.eos, models.lanes)
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
        # The engine goes on by itself while this thread looks now and then whether it has run dry.
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
            "drafts": self.config.drafted,
            "processes": str(self.config.tensor_parallel),
            "reproducible": "yes" if self.config.reproducible else "no",
        }

    def submit(self, request: GenerationRequest, sink: Sink) -> None:
        """Queue ``request``; ``sink`` gets its outputs, the last with a finish reason. Raises InputError, QueueFull."""
        # Checked on the caller's thread: what can never run is refused before it takes a place in the queue.
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
            step_rows=self.runner.step_rows,
            distinct_weights=counts.weights,
            catch_up_tokens=dict(counts.late),
            drafted_tokens=dict(self.speculation.drafts.drafted),
            accepted_tokens=dict(self.speculation.drafts.accepted),
            guess_seconds=self.speculation.drafts.guess_seconds,
            distinct_preferences=counts.preferences,
            merges=self.store.stats(),
            rows_by_step=counts.step_rows.seen(),
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
        # One step: take in what came, schedule, draft, compute, hand over.
        self.idle.worked()
        with self._wake:
            inbox, self._inbox = list(self._inbox), deque()
        self._receive(inbox)
        plan = self.scheduler.schedule()
        while self._failed:
            sequence, error = self._failed.pop()
            self.tracker.end(sequence, "error", error)
        if plan:
            self.speculation.drafts.plan(plan)
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
                self.led.drop(item)
                continue
            if not isinstance(item, tuple):
                item()
                continue
            # An id may be used by one request at a time: outputs and cancellation go by it.
            sequence, sink = item
            if sequence.request_id in self.tracker or sequence.request_id in self.led:
                sequence.leave_queue()
                self.tracker.deliver(sink, [without_token(sequence, "error", "a request with this id is running", "")])
                continue
            try:
                self.led.begin(sequence, sink)
            except Exception as error:
                logger.exception("a request could not begin")
                self.led.drop(sequence.request_id)
                sequence.leave_queue()
                self.tracker.deliver(
                    sink, [without_token(sequence, "error", f"{type(error).__name__} in the engine", "")]
                )

    def _step(self, plan: StepPlan) -> None:
        start = time.monotonic()
        # Time in the queue ends with the first step that computes anything of a sequence.
        for sequence in plan.sequences:
            if sequence.admitted_at is None:
                sequence.admitted_at = start
                sequence.leave_queue()
        # Counted before the forward: a step that fails has cost its tokens too.
        plan.account()
        admitted = self.scheduler.take_admitted()
        try:
            self.runner.clear(self.scheduler.take_fresh())
            for sequence in admitted:
                self.sampler.admit(sequence, self.vocabulary)
                self.store.use(lane.materialised for lane in sequence.lanes)
            result = self.runner.step(plan)
        except Exception as error:
            logger.exception("a step failed")
            self._lose(list(dict.fromkeys([*plan.sequences, *admitted])), error)
            return
        # The forward is done: positions move on, full blocks are published to the prefix cache, then tokens are handed
        # over.
        self.scheduler.advance(plan, result.caught_up.behind)
        self._tell(plan.sampling, result)
        accepted = self.speculation.draw_on(plan)
        seconds = time.monotonic() - start
        self.scheduler.pace.note(plan, seconds)
        self.speculation.drafts.note(plan, accepted, seconds)
        self.counts.step(plan.sequences, self.runner.step_rows, seconds)

    def _tell(self, sequences: Seq[Sequence], result: StepResult) -> None:
        """Record what a round of draws gave ``sequences``, and hand it over."""
        for chunk in result.caught_up.chunks:
            self.scheduler.extend(chunk.sequence, chunk.lane, chunk.count)
        self.counts.made_up(result.caught_up.missed())
        self.tracker.tell(sequences, result)

    def _lose(self, sequences: Seq[Sequence], error: Exception) -> None:
        """Only the requests of a step that failed are lost; the engine goes on with the others. Raises where it cannot:
        the device is broken, or another process is gone."""
        for sequence in sequences:
            self.tracker.end(sequence, "error", f"{type(error).__name__} in the engine")
        require_working(self.device)
        self.models.require_all()

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
            "led requests": len(self.led),
            "rows of the draft model": self.speculation.drafts.held,
        }
        if any(held.values()):
            raise AssertionError(
                f"nothing runs, but {', '.join(f'{n} {name}' for name, n in held.items() if n)} are held"
            )
