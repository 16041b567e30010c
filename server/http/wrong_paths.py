"""What is said of paths and methods that the server does not have: which one was meant, or that others have it."""

from __future__ import annotations

import re
from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from ladle.merging.exceptions import SHOWN
from ladle.server.api_errors import ApiError

# Of the APIs that this server speaks. A path that has a name in it may look like one that is here.
_LACKING = tuple(
    (re.compile(f"{pattern}(/.*)?"), reason)
    for pattern, reason in (
        (
            "/v1/responses/compact",
            "it compacts no conversations; previous_response_id goes on from one",
        ),
        ("/v1/responses/[^/]+/cancel", "it writes no answers in the background; closing a connection cancels one"),
        ("/v1/chat/completions/[^/]+", "it keeps no chat completions; it keeps answers of /v1/responses"),
        ("/v1/(conversations|assistants|threads)", "it keeps answers of /v1/responses; send previous_response_id"),
        ("/v1/messages/batches", "it has no batches; send the requests side by side"),
        ("/v1/(batches|files|uploads)", "it keeps no files; send the requests of a batch side by side"),
        ("/v1/(audio|embeddings|images|moderations|realtime|videos)", "its models write text"),
        ("/v1/(containers|evals|fine_tuning|skills|vector_stores)", "it only serves models"),
    )
)


def install(app: FastAPI) -> None:
    """Make paths and methods that ``app`` does not have answer with the envelope."""

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _answer(request, error)

    app.add_exception_handler(HTTPException, on_http_error)


def _answer(request: Request, error: HTTPException) -> Response:
    status, asked = error.status_code, f"{request.method} {request.url.path[:SHOWN]}"
    message = str(error.detail or HTTPStatus(status).phrase)
    code = HTTPStatus(status).name.lower()
    if status in (404, 405) and (reason := _lack(request.url.path)) is not None:
        message = f"this server does not have {asked}: {reason}"
        return ApiError(404, message, code=HTTPStatus.NOT_FOUND.name.lower()).response()
    if status == 404:
        message = f"no such path: {asked}{_hint(request)}"
    elif status == 405:
        allowed = _methods(request) or (error.headers or {}).get("Allow", "")
        message = f"{request.method} is not allowed on {request.url.path}; allowed: {allowed}"
        headers = {**(error.headers or {}), "Allow": allowed}
        return ApiError(status, message, code=code, headers=headers).response()
    return ApiError(status, message, code=code, headers=error.headers).response()


def _lack(path: str) -> str | None:
    """Why there is nothing at ``path``, where other servers have something; None where they have not."""
    return next((reason for pattern, reason in _LACKING if pattern.fullmatch(path)), None)


def _hint(request: Request) -> str:
    """The path that was probably meant, where there is one: /v1 or a slash too few or too many is what goes wrong, and
    what other servers put in front of /v1."""
    path = "/" + "/".join(part for part in request.url.path.split("/") if part)
    inner = path.removeprefix("/v1")
    last = path.lower().rpartition("/v1/")[2]
    for meant in (path, f"/v1{path}", inner, f"/v1/{last}"):
        scope = {**request.scope, "path": meant}
        known = any(route.matches(scope)[0] is not Match.NONE for route in request.app.routes)
        if meant != request.url.path and known:
            return f"; did you mean {meant[:SHOWN]}?"
    return ""


def _methods(request: Request) -> str:
    """What may be done with the path of ``request``, by all routes that it has; HEAD goes with GET."""
    methods = {
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    }
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
