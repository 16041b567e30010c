"""The loop that all streamed answers share; what an event looks like is the endpoint's business."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from ladle.server.api_errors import ApiError, from_exception
from ladle.server.engine.requests.request import StepOutput
from ladle.server.generation import Job, batches
from ladle.server.http.sse import DONE, KEEP_ALIVE, EventStream, event
from ladle.server.serving import Serving
from ladle.server.state import ServerState

logger = logging.getLogger(__name__)

ID_HEADER = "X-Generation-Id"
"""The header that says which answer a stream is, before its first event: whoever reads it may steer it."""


class EventWriter(ABC):
    """Turns outputs into events; by default as OpenAI's older endpoints do, without names and with a mark at the end.

    Attributes:
        named: whether events have their ``type`` as a name, too.
        end: what follows the last event.
        alive: what is sent when there is nothing to say.
    """

    named = False
    end = DONE
    alive = KEEP_ALIVE

    def opening(self) -> Iterator[Any]:
        """Events before the first output."""
        return iter(())

    @abstractmethod
    def step(self, index: int, output: StepOutput, last: bool) -> Iterator[Any]:
        """Events of one output of sequence ``index``; ``last`` when no other output follows."""

    @abstractmethod
    def closing(self, outputs: list[StepOutput]) -> Iterator[Any]:
        """Events after the last output; ``outputs`` holds each sequence's last one."""

    def failed(self, error: ApiError) -> Iterator[Any]:
        """Events of a failure after the first event, which end the stream."""
        yield error.envelope()

    def written(self, events: Iterable[Any]) -> bytes:
        """``events`` as they are sent."""
        return b"".join(event(item, item["type"] if self.named else None) for item in events)


async def stream_response(state: ServerState, serving: Serving, job: Job, writer: EventWriter) -> EventStream:
    """Start ``job`` and answer with its events. What fails at once is raised, and so still becomes an HTTP status."""
    events = _events(state, serving, job, writer)
    return EventStream(await anext(events), events, {ID_HEADER: f"gen-{job.id}"})


async def _events(state: ServerState, serving: Serving, job: Job, writer: EventWriter) -> AsyncGenerator[bytes, None]:
    ends: dict[int, StepOutput] = {}
    started = False
    try:
        async with aclosing(batches(state, serving, job)) as steps:
            async for batch in steps:
                data = b"" if started else writer.written(writer.opening())
                for index, output in batch:
                    if output.finish_reason is not None:
                        ends[index] = output
                    last = len(ends) == len(job.requests)
                    data += writer.written(writer.step(index, output, last))
                if data or not batch:
                    started = True
                    yield data or writer.alive
        outputs = [ends[index] for index in range(len(job.requests))]
        yield writer.written(writer.closing(outputs)) + writer.end
    except Exception as error:
        if not started:
            raise
        if not isinstance(error, ApiError):
            logger.exception("a stream failed")
        # The status is long sent: an error event ends the stream, without [DONE].
        failure = from_exception(error)
        failure.note()
        yield writer.written(writer.failed(failure))
