"""Every failure as the envelope of the API that was called; OpenAI's is ``{"error": {"message", "type", "param",
"code"}}``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ladle.merging.exceptions import SHOWN, InputError, did_you_mean, shown
from ladle.server.engine.requests.queue import QueueFull
from ladle.server.envelopes import envelope, error_type
from ladle.server.watch import request_context

logger = logging.getLogger(__name__)

_MOST_ERRORS = 10


@dataclass(frozen=True)
class Overflow:
    """Tokens that do not fit a ``context``: those of the ``prompt``, at least, and those ``asked`` for beside it; None
    where the prompt alone does not fit."""

    context: int
    prompt: int
    asked: int | None = None


class ApiError(HTTPException):
    """A failure with everything its envelope says.

    It is an HTTPException so that FastAPI hands it through wherever it is raised, while a body is read included.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.message = message
        self.param = param
        self.code = code
        self.reason: str | None = None
        """The message without the field's name before it, where it has one."""
        self.overflow: Overflow | None = None
        """By how much the context was missed, where that is what went wrong."""

    @classmethod
    def about(cls, field: str, reason: str, *, code: str, param: str | None = None) -> ApiError:
        """400 whose message names ``field``; ``param`` is what the request calls it, if that is something else."""
        error = cls(400, f"{field}: {reason}", param=param or field, code=code)
        error.reason = reason
        return error

    def envelope(self) -> dict[str, Any]:
        """The body of the response."""
        return envelope(self.status_code, self.message, self.param, self.code)

    def note(self) -> None:
        """Put the code and the field's name, but nothing of its value, among what is logged of the current request."""
        context = request_context.current()
        if context is not None:
            context.facts["error_code"] = self.code or error_type(self.status_code)
            if self.param is not None:
                context.facts["param"] = self.param[:SHOWN]

    def response(self) -> JSONResponse:
        """The response; the access log will name its reason."""
        self.note()
        return JSONResponse(self.envelope(), self.status_code, self.headers)


def from_input_error(error: InputError, param: str | None = None) -> ApiError:
    """400 for a refused value; ``param`` replaces the field where the request spelt it differently."""
    field = param or error.field
    return ApiError.about(error.field, error.complaint(), param=field, code="invalid_value")


def context_overflow(overflow: Overflow, reason: str, param: str) -> ApiError:
    """400 for what does not fit the context, by the code and in the words that clients look for to take fewer messages
    or another model."""
    said = f"This model's maximum context length is {overflow.context} tokens; {reason}"
    error = ApiError.about(param, said, code="context_length_exceeded")
    error.overflow = overflow
    return error


def from_queue_full(error: QueueFull) -> ApiError:
    """429 with when to come back."""
    seconds = max(1, math.ceil(error.retry_after_s))
    return ApiError(429, f"the server is busy: {error}", code="queue_full", headers={"Retry-After": str(seconds)})


def unavailable(reason: str, code: str, retry_after_s: int = 5) -> ApiError:
    """503 with when to come back."""
    return ApiError(503, reason, code=code, headers={"Retry-After": str(retry_after_s)})


def internal() -> ApiError:
    """500 that tells nothing of the inside; the log has it."""
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


def from_exception(error: Exception) -> ApiError:
    """The answer to any exception that a handler let through."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return from_input_error(error)
    if isinstance(error, QueueFull):
        return from_queue_full(error)
    return internal()


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """400 for a body that does not fit its schema, from pydantic's list of errors; names the first field."""
    described = [_describe(error) for error in errors[:_MOST_ERRORS]]
    message = "; ".join(text for _, text in described)
    if len(errors) > _MOST_ERRORS:
        message += "; and more"
    return ApiError(400, message, param=described[0][0] or None, code="invalid_value")


def _describe(error: Mapping[str, Any]) -> tuple[str, str]:
    """(field, message) of one pydantic error."""
    field = _path(error["loc"])
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, InputError):
        # Nested models report a field relative to themselves; the body's own validators report the full path.
        if field and not cause.field.startswith(field):
            cause = cause.at(f"{field}.{cause.field}")
        return cause.field, from_input_error(cause).message
    if error["type"] == "extra_forbidden":
        meant = did_you_mean(str(error["loc"][-1]), sorted(getattr(error["input"], "known", ())))
        return field, f"{field}: unknown or unsupported field{meant}"
    if error["type"] == "missing":
        return field, f"{field or 'body'}: required"
    reason = str(cause) if isinstance(cause, ValueError) else error["msg"]
    return field, f"{field or 'body'}: {reason} (got {shown(error.get('input'))})"


def _path(location: Sequence[int | str]) -> str:
    """``("body", "messages", 0, "role")`` -> ``messages[0].role``."""
    path = ""
    for part in location[1:] if location and location[0] in ("body", "query", "path", "header") else location:
        if isinstance(part, str) and part.startswith("<"):
            continue  # which of several types a value was taken for: see ``of_kinds``
        path += f"[{part}]" if isinstance(part, int) else f".{part[:SHOWN]}" if path else part[:SHOWN]
    return path


def install(app: FastAPI) -> None:
    """Make every failure of ``app`` answer with the envelope; ``http.wrong_paths`` does so with paths."""

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        return from_exception(error).response()

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation(error.errors()).response()

    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the exception again after this answer, so the log gets its traceback from the web server.
        logger.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
        response, context = internal().response(), request_context.current()
        if context is not None:  # this answer goes past the middleware that puts it on all others
            response.headers["x-request-id"] = context.id
        return response

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(InputError, on_api_error)
    app.add_exception_handler(QueueFull, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_failure)
