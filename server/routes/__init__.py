"""One file per endpoint. Each module has a ``router``; ``state_of(request)`` is how handlers reach the shared state.

In: HTTP requests, their bodies checked by the packages below. Out: replies and streams. Handlers keep no state of their
own.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import TypeAdapter

from ladle.server.access.callers import Meter
from ladle.server.access.security import caller_of
from ladle.server.fields.model_names import ModelName
from ladle.server.reader import Reader
from ladle.server.replies.reply_types import ErrorReply
from ladle.server.serving import Serving
from ladle.server.state import ServerState
from ladle.server.steering import unknown_model

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "a field is not allowed; `param` names it"},
    401: {"model": ErrorReply, "description": "no known API key"},
    404: {"model": ErrorReply, "description": "no such model or path"},
    409: {"model": ErrorReply, "description": "not as things stand"},
    413: {"model": ErrorReply, "description": "the body is too large"},
    415: {"model": ErrorReply, "description": "the body is not of type application/json"},
    429: {"model": ErrorReply, "description": "too many requests wait, or the key is at a limit; see `Retry-After`"},
    500: {"model": ErrorReply, "description": "the server failed"},
    503: {"model": ErrorReply, "description": "loading, draining or paused; see `Retry-After`"},
}

EVENT_SHAPES: dict[str, Any] = {}
"""Named parts of the shapes of events, for the OpenAPI document."""


def state_of(request: Request) -> ServerState:
    """The server's state."""
    state: ServerState = request.app.state.server
    return state


def serving_of(request: Request, model: str | None) -> Serving:
    """The family that ``model`` means, held until the answer has ended.

    Raises:
        ApiError: 503, or 404 for a family that is not there.
    """
    state = state_of(request)
    hosted = state.choose(model)
    if model is not None and hosted is not state.hosting.find(model):
        ModelName.parse(model)
        raise unknown_model(model, *(other.live.family for other in state.hosting.families.values()))
    return state.hosting.hold(request.scope, hosted)


def reader_of(request: Request, generates: bool = True) -> Reader:
    """What reads the texts of a request, for which its caller pays where it ``generates``."""
    state = state_of(request)
    meter = Meter(caller_of(request.scope)) if generates else None
    return Reader(request, state.reading, state.compiling, meter)


def answers(shape: Any, *codes: int, error: Any = ErrorReply) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: ``shape`` on success and the errors ``codes``, which have the shape ``error``."""
    return {200: {"model": shape}, **{code: {**ERRORS[code], "model": error} for code in codes}}


def streamed(shape: Any, event: Any, *codes: int, error: Any = ErrorReply) -> dict[int | str, dict[str, Any]]:
    """``answers`` of a route that, where ``stream`` is true, sends events whose data are of the shape ``event``."""
    schema = TypeAdapter(event | error).json_schema(ref_template="#/components/schemas/{model}")
    EVENT_SHAPES.update(schema.pop("$defs", {}))
    data = [{"const": "[DONE]"}, {"contentMediaType": "application/json", "contentSchema": schema}]
    # Until OpenAPI 3.2 the schema of a stream is that of one event.
    one = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "anyOf": data}}}
    replies = answers(shape, *codes, error=error)
    replies[200]["content"] = {"text/event-stream": {"schema": one}}
    return replies
