"""When the parts of one sequence's life began."""

from __future__ import annotations

from dataclasses import dataclass

from ladle.server.engine.requests.request import StepOutput


@dataclass
class SequenceTimes:
    """When a sequence came on, in seconds of ``time.monotonic``; None for what has not been seen.

    Attributes:
        submitted: when it was handed to the engine.
        started: its first step. It stays None for a sequence that is made of several, each of which has waited for
            itself.
        first: its first token.
        last: its last output so far.
    """

    submitted: float
    started: float | None = None
    first: float | None = None
    last: float | None = None

    def saw(self, output: StepOutput, now: float) -> None:
        """Take in an output that came at ``now``."""
        if self.last is None:
            if output.queued_s is not None:
                self.started = min(now, self.submitted + output.queued_s)
            if output.completion_tokens:
                self.first = now
        self.last = now

    def parts(self) -> list[tuple[str, float, float]]:
        """(name, start, end) of what is over: ``queue``, ``prefill``, ``decode``."""
        parts = []
        if self.started is not None:
            parts.append(("queue", self.submitted, self.started))
            if self.first is not None:
                parts.append(("prefill", self.started, self.first))
        if self.first is not None and self.last is not None:
            parts.append(("decode", self.first, self.last))
        return parts
