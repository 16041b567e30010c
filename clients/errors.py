"""What can go wrong, as a tree.

LadleError
 +-- UsageError                the call is wrong; nothing was sent            (also a ValueError)
 +-- ConnectionError           the server cannot be reached, or it went away  (also the built-in ConnectionError)
 |    +-- UnreachableError     there is no connection to it at all
 |    +-- TimeoutError         it did not answer in time                      (also the built-in TimeoutError)
 +-- ResponseError             the answer is not one Ladle gives: probably another server
 +-- APIError                  the server said no, or reported an error in the middle of a stream
      +-- BadRequestError      400, 422
      +-- AuthenticationError  401, 403
      +-- NotFoundError        404
      +-- PayloadTooLargeError 413
      +-- RateLimitError       429, the queue is full or the key at a limit
      +-- ServerError          5xx, also while it loads or drains
"""

import builtins
import json
from typing import Any

import httpx


class LadleError(Exception):
    """The root of everything this package raises on purpose."""


class UsageError(LadleError, ValueError):
    """The call is wrong; nothing was sent."""


class ConnectionError(LadleError, builtins.ConnectionError):
    """The server cannot be reached, or it went away before its answer was complete."""


class UnreachableError(ConnectionError):
    """There is no connection to the server: nothing listens at the address, or no way leads there."""


class TimeoutError(ConnectionError, builtins.TimeoutError):
    """The server did not answer in time."""


class ResponseError(LadleError):
    """The answer is not what the contract says."""


class APIError(LadleError):
    """The server refused a request, or failed while answering it.

    Attributes:
        message: the server's words.
        status: the HTTP status; None for an error in the middle of a stream.
        code: machine-readable reason, such as ``queue_full``; None where the server gave none.
        param: the path of the offending field, such as ``steering.preference.positive``; None if no field is to blame.
        type: OpenAI's class of error, such as ``invalid_request_error``.
        request_id: names the request in the server's log.
        retry_after: seconds after which the server would like to be asked again; None if it said nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.type = type
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        facts = [
            f"status {self.status}" if self.status else None,
            f"request {self.request_id}" if self.request_id else None,
        ]
        detail = ", ".join(fact for fact in facts if fact)
        return f"{self.message} ({detail})" if detail else self.message


class BadRequestError(APIError):
    """400 or 422: a field is unknown or has a value that is not allowed; see ``param``."""


class AuthenticationError(APIError):
    """401 or 403: the key is missing or not accepted."""


class NotFoundError(APIError):
    """404: no such model or family; the message lists those that exist."""


class PayloadTooLargeError(APIError):
    """413: the request's body is larger than the server takes."""


class RateLimitError(APIError):
    """429: the queue is full, or the key is at one of its limits; see ``retry_after``."""


class ServerError(APIError):
    """5xx: the server failed, is still loading, or is shutting down."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    413: PayloadTooLargeError,
    422: BadRequestError,
    429: RateLimitError,
}


def error_from_status(response: httpx.Response, retry_after: float | None = None) -> APIError:
    """The error an unsuccessful response stands for; its body must have been read."""
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else APIError)
    try:
        envelope = response.json()["error"]
        message = str(envelope["message"])
    except (KeyError, TypeError, ValueError):
        # A proxy's page or another server: its first line is all that helps.
        first_line = next((line.strip() for line in response.text.splitlines() if line.strip()), "")
        envelope, message = {}, f"HTTP {status} {response.reason_phrase}: {first_line[:200]}".rstrip(": ")
    return kind(
        message,
        status=status,
        code=_text(envelope.get("code")),
        param=_text(envelope.get("param")),
        type=_text(envelope.get("type")),
        request_id=response.headers.get("x-request-id"),
        retry_after=retry_after,
    )


def error_from_event(envelope: Any, request_id: str | None) -> APIError:
    """The error that a server reports in the middle of a stream."""
    fields = envelope if isinstance(envelope, dict) else {}
    return APIError(
        str(fields.get("message") or json.dumps(envelope)),
        code=_text(fields.get("code")),
        param=_text(fields.get("param")),
        type=_text(fields.get("type")),
        request_id=request_id,
    )


def error_from_transport(error: httpx.TransportError, url: str) -> ConnectionError:
    """What httpx reports about the connection, in terms of this package."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return TimeoutError(f"{url} did not answer in time: {reason}")
    if isinstance(error, httpx.ConnectError):
        return UnreachableError(f"cannot reach {url}: {reason}")
    return ConnectionError(f"the connection to {url} broke: {reason}")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
