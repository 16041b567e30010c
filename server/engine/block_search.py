"""Blockwise decoding: several continuations of some tokens are drawn, the one whose end the values like best stays.

Controlled decoding's second mode (arXiv 2310.17022): values are asked once a block instead of at every token. The draws
of a round are ordinary sequences that share the text so far, and so are the valuations after it, so that they batch
with everything else; the request itself is no sequence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ladle.guidance.plan import Plan
from ladle.server.engine.requests.answer import Answer, without_token
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.slot_tables import draw_keys

logger = logging.getLogger(__name__)

Sink = Callable[[list[StepOutput]], None]
_MASK = (1 << 64) - 1


class BlockSearch:
    """One request on its way, on the engine thread.

    Args:
        request: its plan has ``blocks``.
        answer: the text that the client sees.
        deliver: takes the request's outputs.
        run: starts a sequence whose outputs go to a sink.
        stop: ends a sequence by its id, without an output.
        lanes: fresh lanes for the sources of a request.
    """

    def __init__(
        self,
        request: GenerationRequest,
        answer: Answer,
        deliver: Sink,
        run: Callable[[Sequence, Sink], None],
        stop: Callable[[str], None],
        lanes: Callable[[GenerationRequest], list[Lane]],
    ) -> None:
        assert request.plan.blocks is not None
        self.request = request
        self.blocks = request.plan.blocks
        self._answer = answer
        self._deliver = deliver
        self._run = run
        self._stop = stop
        self._lanes = lanes
        plan = request.plan
        self._drawing = replace(plan, sources=tuple(s for s in plan.sources if not s.head), blocks=None)
        self._valuing = replace(plan, sources=tuple(s for s in plan.sources if s.head), blocks=None, trace=False)
        self._tokens: list[int] = []
        self._drawn: list[list[StepOutput]] = []
        self._values: dict[tuple[int, ...], float] = {}
        self._pending: dict[str, int | tuple[int, ...]] = {}
        self._round = 0
        self._cached_tokens: int | None = None

    def begin(self) -> None:
        """Draw the blocks of a round."""
        self._drawn = [[] for _ in range(self.blocks.count)]
        sampling = self.request.sampling
        length = min(sampling.max_tokens, len(self._tokens) + self.blocks.length)
        seeds = draw_keys(
            np.full(self.blocks.count, sampling.seed & _MASK, dtype=np.uint64), np.arange(self.blocks.count)
        )
        for index, words in enumerate(seeds.view(np.uint64)[:, 0].tolist()):
            # The first block of a round draws what the request would draw without blocks.
            seed = sampling.seed if index == 0 else words
            options = replace(sampling, max_tokens=length, seed=seed, stop=())
            self._start(f"{self._round}.{index}", self._drawing, options, self._tokens, index)

    def cancel(self) -> None:
        """Forget it all."""
        for name in list(self._pending):
            self._stop(name)
        self._pending = {}

    def _start(
        self, name: str, plan: Plan, sampling: SamplingParams, tokens: list[int], key: int | tuple[int, ...]
    ) -> None:
        own = replace(self.request, request_id=f"{self.request.request_id}/{name}", plan=plan, sampling=sampling)
        self._pending[own.request_id] = key
        self._run(Sequence(own, self._lanes(own), output=list(tokens)), self._take)

    def _take(self, outputs: list[StepOutput]) -> None:
        try:
            self._follow(outputs)
        except Exception as error:
            # Nobody but this search would know that the request has failed.
            logger.exception("a block search failed")
            self.cancel()
            whole = Sequence(self.request, [], output=self._tokens)
            self._deliver([without_token(whole, "error", f"{type(error).__name__} in the engine", "")])

    def _follow(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            key = self._pending.get(output.request_id)
            if key is None:
                continue
            if output.finish_reason in ("abort", "error"):
                self._fail(output)
                return
            if isinstance(key, int):
                self._drawn[key].append(output)
            else:
                assert output.value is not None
                self._values[key] = output.value
            if output.finish_reason is not None:
                del self._pending[output.request_id]
        if not self._pending:
            if self._values:
                self._choose()
            else:
                self._value()

    def _value(self) -> None:
        """All blocks are drawn: ask the values about those that differ."""
        if self._cached_tokens is None:
            self._cached_tokens = self._drawn[0][0].cached_tokens
        blocks = dict.fromkeys(tuple(output.token for output in block) for block in self._drawn)
        for index, block in enumerate(blocks):
            tokens = [*self._tokens, *block]
            self._start(f"{self._round}.v{index}", self._valuing, self.request.sampling, tokens, block)

    def _choose(self) -> None:
        """All blocks are valued: keep the best, the first of equal ones."""
        best = max(self._drawn, key=lambda block: self._values[tuple(output.token for output in block)])
        value = self._values[tuple(output.token for output in best)]
        self._values = {}
        outputs = []
        for output in best:
            self._tokens.append(output.token)
            pushed = self._answer.push(
                output.token,
                len(self._tokens),
                self._cached_tokens or 0,
                output.logprob,
                output.top,
                output.trace,
                # A draw has no stop strings, so that it stops where the text or the grammar ends.
                ended=output.finish_reason == "stop",
            )
            last = output is best[-1]
            outputs.append(replace(pushed, value=value if last else None))
            if pushed.finish_reason is not None:
                break
        finished = outputs[-1].finish_reason is not None
        self._deliver(outputs)
        if not finished:
            self._round += 1
            self.begin()

    def _fail(self, output: StepOutput) -> None:
        self.cancel()
        assert output.finish_reason is not None
        whole = Sequence(self.request, [], output=self._tokens)
        self._deliver([without_token(whole, output.finish_reason, output.error, self._answer.finish())])
