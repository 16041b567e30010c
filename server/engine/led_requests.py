"""Requests that are led: those that take several sequences, or whose outputs wait for what others say of them."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from ladle.server.engine.block_search import BlockSearch
from ladle.server.engine.led_answer import LedAnswer
from ladle.server.engine.monitored_answer import MonitoredAnswer
from ladle.server.engine.request_tracker import RequestTracker, Sink
from ladle.server.engine.requests.answer import Answer
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scored_answer import ScoredAnswer
from ladle.server.engine.verified_thought import VerifiedThought


class LedRequests:
    """Requests that lead sequences of their own. For the engine's thread.

    Args:
        tracker: where their sequences are served.
        tokenizer: turns tokens into text.
        eos: the ids that end a text.
        lanes: fresh lanes for the sources of a request.
    """

    def __init__(
        self,
        tracker: RequestTracker,
        tokenizer: PreTrainedTokenizerFast,
        eos: frozenset[int],
        lanes: Callable[[GenerationRequest], list[Lane]],
    ) -> None:
        self.entries: dict[str, LedAnswer] = {}
        self._thoughts: dict[str, VerifiedThought] = {}
        self._tracker = tracker
        self._tokenizer = tokenizer
        self._eos = eos
        self._lanes = lanes

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.entries or request_id in self._thoughts

    def __len__(self) -> int:
        return len(self.entries) + len(self._thoughts)

    def begin(self, whole: Sequence, sink: Sink) -> None:
        """Serve a request: by itself, where nothing leads it."""
        request = whole.request
        if request.plan.rank is not None:
            deliver, run = self._around(whole, sink)
            self._lead(request, ScoredAnswer(whole, deliver, run, self.drop, self._lanes, self._eos))
        elif request.plan.blocks is not None:
            deliver, run = self._around(whole, sink)
            search = BlockSearch(whole, deliver, run, self.drop, self._lanes, self._eos)
            search.write_on(self._answer(request))
            self._lead(request, search)
        else:
            self._write(whole, sink)

    def drop(self, request_id: str) -> None:
        """Forget a request without a word."""
        led = self.entries.pop(request_id, None)
        if led is not None:
            led.cancel()
        self._stop(request_id)

    def _write(self, sequence: Sequence, sink: Sink) -> None:
        """Serve a sequence that writes, watched or not."""
        request = sequence.request
        if request.plan.monitors and request.sampling.max_tokens:
            deliver, _ = self._around(sequence, sink)
            self._lead(request, MonitoredAnswer(sequence, deliver, self._think, self._stop, self._lanes, self._eos))
        else:
            self._think(sequence, sink)

    def _think(self, sequence: Sequence, sink: Sink) -> None:
        """Serve a sequence whose thought may have a verifier. Whoever watches it as well sees what that leaves of it,
        under the same id."""
        request = sequence.request
        if request.thinking is None or request.thinking.verifier is None:
            self._add(sequence, sink)
            return

        def deliver(outputs: list[StepOutput]) -> None:
            if outputs[-1].finish_reason is not None:
                self._thoughts.pop(request.request_id, None)
            self._tracker.deliver(sink, outputs)

        # The verifier stands between the sequence and whoever watches or ranks it: these see only what it lets stand.
        leader = VerifiedThought(sequence, deliver, self._add, self._give_up, self._lanes, self._eos)
        leader.serve_by(self._standing, self._tracker.add)
        self._thoughts[request.request_id] = leader
        leader.begin()

    def _lead(self, request: GenerationRequest, leader: LedAnswer) -> None:
        self.entries[request.request_id] = leader
        leader.begin()

    def _around(
        self, whole: Sequence, sink: Sink
    ) -> tuple[Callable[[list[StepOutput]], None], Callable[[Sequence, Sink], None]]:
        """What takes the outputs of ``whole``, which is led, and what starts its parts."""

        def deliver(outputs: list[StepOutput]) -> None:
            if outputs[-1].finish_reason is not None:
                self.entries.pop(whole.request_id, None)
            self._tracker.deliver(sink, outputs)

        def run(part: Sequence, sink: Sink) -> None:
            part.ticket = whole.ticket  # it has had its turn when the first of its parts has
            self._write(part, sink)

        return deliver, run

    def _add(self, sequence: Sequence, sink: Sink) -> None:
        # One that goes on from a text may be in the midst of a thought.
        answer = self._answer(sequence.request).behind(sequence.request.thinking, sequence.output)
        self._tracker.add(sequence, answer, sink)

    def _answer(self, request: GenerationRequest) -> Answer:
        return Answer(request, self._tokenizer, self._eos)

    def _standing(self, request_id: str) -> tuple[Sequence, Answer] | None:
        entry = self._tracker.entries.get(request_id)
        return None if entry is None else entry[:2]

    def _stop(self, request_id: str) -> None:
        thought = self._thoughts.pop(request_id, None)
        if thought is not None:
            thought.cancel()
        self._give_up(request_id)

    def _give_up(self, request_id: str) -> None:
        """End one sequence."""
        if request_id in self._tracker:
            self._tracker.drop(request_id)
