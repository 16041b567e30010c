"""Routes that generate refuse whom they cannot serve now before they read what is asked."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response

from ladle.server.access.security import caller_of
from ladle.server.api_errors import from_queue_full
from ladle.server.engine.requests.queue import QueueFull
from ladle.server.http.json_request import JsonRoute
from ladle.server.state import ServerState


class GeneratingRoute(JsonRoute):
    """A route whose requests need a place in the engine's queue, and a caller who has something left.

    Under overload, or from a caller who is over its limits, most requests are refused. Reading, checking and encoding
    each of them first would take the processor from those that were accepted, who share it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def roomy(request: Request) -> Response:
            state: ServerState = request.app.state.server
            if not state.unready():
                full = _nowhere(state)
                if full is not None:
                    raise state.counted(from_queue_full(full))
                state.let(caller_of(request.scope))
            return await handler(request)

        return roomy


def _nowhere(state: ServerState) -> QueueFull | None:
    """The refusal that ends soonest, where no family has a place in its queue: which one a request means is not known
    before it is read."""
    refusals = []
    for hosted in state.hosting.families.values():
        try:
            hosted.live.engine.require_room()
        except QueueFull as full:
            refusals.append(full)
        else:
            return None
    return min(refusals, key=lambda full: full.retry_after_s, default=None)
