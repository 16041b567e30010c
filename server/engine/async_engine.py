"""The engine as asyncio sees it: one async iterator per request, fed once per step and loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence

from transformers import PreTrainedTokenizerFast

from ladle.server.engine.engine import Engine
from ladle.server.engine.live_steering import steer
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.stats.stats import EngineStats


class AsyncEngine:
    """Bridges one Engine into one event loop.

    The engine thread hands over all outputs of a step in a single ``call_soon_threadsafe``; it never waits for the
    loop, and the loop never waits for a step.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._queues: dict[str, asyncio.Queue[StepOutput]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.engine.tokenizer

    @property
    def max_context(self) -> int:
        """Longest prompt plus continuation, in tokens."""
        return self.engine.max_context

    @property
    def eos(self) -> frozenset[int]:
        """The ids that end a text."""
        return self.engine.eos

    @property
    def alive(self) -> bool:
        return self.engine.alive

    @property
    def ready(self) -> bool:
        return self.engine.alive

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def require_room(self) -> None:
        """Raise QueueFull while the queue has no place for any request."""
        self.engine.room.require()

    async def stream(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        """The outputs of ``request``, the last one with a finish reason.

        Closing the iterator (or cancelling the task that runs it) cancels the request: its lanes are free before the
        next step. Raises InputError, QueueFull, RuntimeError (shutting down) before the first output.
        """
        if request.request_id in self._queues:
            raise ValueError(f"a request with the id {request.request_id} is running")
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[StepOutput] = asyncio.Queue()
        self._queues[request.request_id] = queue
        finished = False
        try:
            # The queue is there before the request is: its first output may come before ``submit`` returns.
            self.engine.submit(request, self._deliver)
            while not finished:
                output = await queue.get()
                finished = output.finish_reason is not None
                yield output
        finally:
            del self._queues[request.request_id]
            # Closed from outside, or cancelled: the engine is told, and what it still delivers finds no queue.
            if not finished:
                self.engine.cancel(request.request_id)

    def steer(self, requests: Sequence[GenerationRequest]) -> Awaitable[list[int | None]]:
        """Let running sequences go on under the plans of ``requests``; see ``live_steering.steer``. The change is on
        its way when this returns. Raises InputError, RuntimeError."""
        return asyncio.wrap_future(steer(self.engine, requests))

    def _deliver(self, outputs: list[StepOutput]) -> None:
        """On the engine thread."""
        assert self._loop is not None
        try:
            # One wake-up of the loop for all tokens of a step.
            self._loop.call_soon_threadsafe(self._put, outputs)
        except RuntimeError:
            # The loop is closed: nobody listens any more.
            for output in outputs:
                self.engine.cancel(output.request_id)

    def _put(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            queue = self._queues.get(output.request_id)
            if queue is not None:
                queue.put_nowait(output)
