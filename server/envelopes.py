"""What an error looks like: OpenAI's envelope, or that of the API whose path was called."""

from __future__ import annotations

from typing import Any

from ladle.server.watch import request_context

ANTHROPIC = "/v1/messages"
"""Where Anthropic's API begins."""

_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_type(status: int) -> str:
    """OpenAI's name for the class of error that a status code is."""
    return _OPENAI.get(status, "invalid_request_error" if status < 500 else "server_error")


def anthropic_type(status: int) -> str:
    """Anthropic's name for it."""
    return _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")


def of_anthropic(path: str) -> bool:
    """Whether Anthropic's API was called."""
    return f"{path}/".startswith(f"{ANTHROPIC}/")


def envelope(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The body of an error answer to the request that is being worked on."""
    context = request_context.current()
    if context is not None and of_anthropic(context.path):
        error = {"type": anthropic_type(status), "message": message}
        return {"type": "error", "error": error, "request_id": context.id}
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}
