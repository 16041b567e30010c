"""Who is being served: every sequence with the answer that grows and the listener that hears of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

from ladle.server.engine.requests.answer import Answer, not_finite, without_token
from ladle.server.engine.requests.request import StepOutput
from ladle.server.engine.requests.sequence import Change, Sequence
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.scores.sampler import Draw
from ladle.server.engine.step_result import StepResult

logger = logging.getLogger(__name__)

Sink = Callable[[list[StepOutput]], None]


class RequestTracker:
    """The sequences that are served, and who hears of them. For the engine's thread.

    Args:
        scheduler: what the sequences hold is given back there.
        cancel: called with the id of a request whose listener failed.
    """

    def __init__(self, scheduler: Scheduler, cancel: Callable[[str], None]) -> None:
        self.entries: dict[str, tuple[Sequence, Answer, Sink]] = {}
        self._scheduler = scheduler
        self._cancel = cancel

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def sink(self, sequence: Sequence) -> Sink:
        """Who hears of ``sequence``."""
        return self.entries[sequence.request_id][2]

    def add(self, sequence: Sequence, answer: Answer, sink: Sink) -> None:
        """Begin to serve ``sequence``."""
        self.entries[sequence.request_id] = (sequence, answer, sink)
        self._scheduler.add(sequence)

    def drop(self, request_id: str) -> None:
        """Forget a request without a word."""
        self.forget(self.entries[request_id][0])

    def change(self, change: Change) -> int | None:
        """Let the sequence of its request go on under another plan at once, in place of whatever was still to come.

        Returns:
            How many tokens it has; None where it is not there, because it has ended or was never submitted.
        """
        entry = self.entries.get(change.request.request_id)
        if entry is None:
            return None
        entry[0].changes.clear()
        self._scheduler.change(entry[0], change)
        return len(entry[0].output)

    def forget(self, sequence: Sequence) -> None:
        """Give back all that ``sequence`` holds."""
        self._scheduler.finish(sequence)
        self.entries.pop(sequence.request_id, None)
        sequence.leave_queue()

    def end(self, sequence: Sequence, reason: str, error: str | None) -> None:
        """End a sequence without a token."""
        entry = self.entries.get(sequence.request_id)
        self.forget(sequence)
        if entry is not None:
            self.deliver(entry[2], [without_token(sequence, reason, error, entry[1].finish())])

    def end_all(self, reason: str, error: str | None) -> None:
        """End all sequences, whatever state they are in."""
        for request_id, (sequence, answer, sink) in list(self.entries.items()):
            try:
                self.end(sequence, reason, error)
            except Exception:  # what is broken may be what keeps count of it; its listener must hear of the end
                logger.exception("what a request held could not be given back")
                self.entries.pop(request_id, None)
                self.deliver(sink, [without_token(sequence, reason, error, answer.finish())])

    def emit(self, sequence: Sequence, draw: Draw, kept: bool) -> StepOutput:
        """Record one token; ends the sequence where a stop rule says so. ``kept``: lanes that score have its state."""
        first = not sequence.output
        said = tuple(sequence.judged) if sequence.judged and first else None
        # Asked only about its prompt: it ends before its first token, which was drawn and is not kept.
        if not sequence.request.sampling.max_tokens:
            self.forget(sequence)
            return replace(without_token(sequence, "length", None, ""), prompt=said, queued_s=sequence.queued_s)
        # From here on the token is part of the sequence: what its lanes compute next, its text, and the stop rules.
        sequence.output.append(draw.token)
        for lane in sequence.lanes:
            assert lane.row is not None
            self._scheduler.table.last[lane.row] = draw.token
        answer = self.entries[sequence.request_id][1]
        output = answer.push(
            draw.token,
            len(sequence.output),
            sequence.cached_tokens,
            draw.logprob,
            draw.top,
            draw.trace,
            draw.expert,
            draw.ended,
        )
        if draw.watched or draw.entropy is not None:
            output = replace(output, watched=draw.watched, entropy=draw.entropy)
        if sequence.began is not None:
            output = replace(output, began=sequence.began)
            sequence.began = None
        # One of three: it ends; a due change of steering sets it back; or a scored lane keeps the drawn candidate's
        # state.
        if output.finish_reason is not None:
            self.forget(sequence)
        elif (change := sequence.due()) is not None:
            self._scheduler.change(sequence, change)
        elif kept:
            for lane in sequence.lanes:
                if lane.scores:
                    self._scheduler.extend(sequence, lane, 1)
        return replace(output, prompt=said, queued_s=sequence.queued_s) if first else output

    def tell(self, sequences: Seq[Sequence], result: StepResult) -> None:
        """Record what ``result`` has for ``sequences``, and hand it over: to each listener all of it in one call."""
        outputs: dict[Sink, list[StepOutput]] = {}
        for sequence in sequences:
            # Who leads several sequences gives up the others of this step where one of them fails.
            if sequence in result.caught_up.behind or sequence.request_id not in self.entries:
                continue
            value = result.worth(sequence)
            if value is None and (refused := result.draws[sequence].error) is not None:
                self.end(sequence, "error", refused)
                continue
            if math.isnan(result.draws[sequence].logprob if value is None else value):
                self.end(sequence, "error", not_finite(sequence.request.plan))
                continue
            # Taken now: ending a sequence forgets who listens to it.
            sink = self.sink(sequence)
            try:
                if value is None:
                    output = self.emit(sequence, result.draws[sequence], sequence in result.kept)
                else:
                    self.forget(sequence)
                    output = replace(without_token(sequence, "stop", None, ""), value=value)
                outputs.setdefault(sink, []).append(output)
            except Exception as error:
                logger.exception("a token could not be turned into text")
                self.end(sequence, "error", f"{type(error).__name__} in the engine")
        # After all sequences of the step: a listener is woken once for all of its tokens.
        for sink, batch in outputs.items():
            self.deliver(sink, batch)

    def deliver(self, sink: Sink, batch: list[StepOutput]) -> None:
        """Hand over outputs. A sink that raises loses its requests, and nobody else's."""
        try:
            sink(batch)
        except Exception:
            logger.exception("a listener failed; its requests are cancelled")
            for output in batch:
                if output.finish_reason is None:
                    self._cancel(output.request_id)
