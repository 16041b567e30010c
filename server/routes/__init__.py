"""One file an endpoint. Each module has a ``router``; ``state_of(request)`` is how handlers reach the shared state."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from ladle.server.reply_types import ErrorReply
from ladle.server.state import ServerState

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "a field is not allowed; `param` names it"},
    401: {"model": ErrorReply, "description": "no known API key"},
    404: {"model": ErrorReply, "description": "no such model or path"},
    413: {"model": ErrorReply, "description": "the body is too large"},
    429: {"model": ErrorReply, "description": "too many requests wait; see `Retry-After`"},
    500: {"model": ErrorReply, "description": "the server failed"},
    503: {"model": ErrorReply, "description": "loading or draining; see `Retry-After`"},
}


def state_of(request: Request) -> ServerState:
    """The server's state."""
    state: ServerState = request.app.state.server
    return state


def answers(shape: Any, *codes: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: ``shape`` on success and the errors ``codes``."""
    return {200: {"model": shape}, **{code: ERRORS[code] for code in codes}}
