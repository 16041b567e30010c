"""What became of one request's sequences: metrics while they run, facts for the log and spans once they are over."""

from __future__ import annotations

import time
from typing import Any

from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.live_answers import scheduled
from ladle.server.serving import Serving
from ladle.server.state import ServerState
from ladle.server.watch import request_context
from ladle.server.watch.telemetry import SequenceClock


class JobRecord:
    """Made when the sequences of ``requests`` are submitted."""

    def __init__(self, state: ServerState, serving: Serving, requests: tuple[GenerationRequest, ...]) -> None:
        self._serving = serving
        self._tracing = state.tracing
        self._metrics = state.metrics
        self._changes = 0
        self._drawn = 0
        self._requests = requests
        self._plan = requests[0].plan
        now = time.monotonic()
        self._clocks = [SequenceClock(state.metrics, now, self._plan.method) for _ in requests]
        self._last: list[StepOutput | None] = [None] * len(requests)
        self._texts: list[list[str]] | None = [[] for _ in requests] if state.settings.log_prompts else None
        # Captured now: the generator may be closed outside any request's context.
        self._context = request_context.current()

    def saw(self, index: int, output: StepOutput) -> None:
        """Account for one output of sequence ``index``."""
        if output.began is not None:
            self._changes += 1
            how = "schedule" if scheduled(self._requests[index], output.began) else "request"
            self._metrics.steering_changes.labels(by=how).inc()
            self._clocks[index].method = output.began.method
        blocks = self._plan.blocks
        if output.spent is not None and blocks is not None:
            self._metrics.search_blocks.labels(by=blocks.by).inc(output.block is not None)
            self._metrics.search_draws.labels(by=blocks.by).inc(output.spent.draws)
            self._metrics.search_tokens.labels(by=blocks.by).inc(output.spent.tokens)
            self._drawn += output.spent.tokens
        self._clocks[index].saw(output, time.monotonic())
        self._last[index] = output
        if self._texts is not None:
            self._texts[index].append(output.text)

    def end(self) -> None:
        """Nothing of it runs any more."""
        facts = self.facts()
        if self._context is not None:
            self._context.facts.update(facts)
        parts = [part for clock in self._clocks for part in clock.times.parts()]
        self._tracing.job(facts, self._clocks[0].times.submitted, parts)

    def facts(self) -> dict[str, Any]:
        """Numbers and names; prompts and answers only where the operator asks for them."""
        preference = self._plan.preference
        seen = [output for output in self._last if output is not None]
        times = [clock.times for clock in self._clocks]
        facts: dict[str, Any] = {
            "family": self._serving.family.name,
            "steering": self._plan.method,
            "preference": None if preference is None else dict(preference.weights),
            "sources": len(self._plan.sources),
            "sequences": len(self._requests),
            "max_tokens": max(request.sampling.max_tokens for request in self._requests),
            "prompt_tokens": sum(len(request.prompt) for request in self._requests),
            "cached_tokens": sum(output.cached_tokens for output in seen),
            "completion_tokens": sum(output.completion_tokens for output in seen),
            "finish_reasons": [None if output is None else output.finish_reason for output in self._last],
            "queue_seconds": _longest(time.started - time.submitted for time in times if time.started is not None),
            "first_token_seconds": _longest(time.first - time.submitted for time in times if time.first is not None),
        }
        if self._changes:
            facts["steering_changes"] = self._changes
        if self._drawn:
            facts["drawn_tokens"] = self._drawn
        errors = [output.error for output in seen if output.error is not None]
        if errors:
            facts["errors"] = errors
        if self._texts is not None:
            decode = self._serving.engine.tokenizer.decode
            facts["prompts"] = list(dict.fromkeys(str(decode(list(request.prompt))) for request in self._requests))
            facts["answers"] = ["".join(texts) for texts in self._texts]
        return facts


def _longest(seconds: Any) -> float | None:
    longest = max(seconds, default=None)
    return None if longest is None else round(longest, 6)
