"""The web application: a pure function of its state."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.middleware import Middleware

from ladle.server import api_errors
from ladle.server.access.hosts import HostNames
from ladle.server.access.security import PROTECTED, BodyLimit, KeyCheck, Origins, TrustedHosts
from ladle.server.hosting import Leases
from ladle.server.http import wrong_paths
from ladle.server.http.disconnect import ClientGone
from ladle.server.http.docs_page import render
from ladle.server.http.request_shape import Failures, HeadAsGet, Unpacked, WithoutPrefix
from ladle.server.http.slow_readers import SendTimeout
from ladle.server.observed import Observed
from ladle.server.routes import (
    EVENT_SHAPES,
    admin,
    chat_completions,
    coefficients,
    completions,
    families,
    generate,
    health,
    live_steering,
    messages,
    metrics,
    models,
    playground,
    responses,
    score,
    tokenize,
)
from ladle.server.state import ServerState

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_DESCRIPTION = "Language models steered by preference weights. OpenAI's endpoints, and native ones with traces."
_MODULES: tuple[Any, ...] = (
    chat_completions,
    completions,
    responses,
    messages,
    generate,
    live_steering,
    score,
    coefficients,
    tokenize,
    families,
    models,
    health,
    metrics,
    admin,
)


def build_app(state: ServerState, lifespan: Lifespan | None = None, names: HostNames | None = None) -> FastAPI:
    """The application over ``state``. It loads nothing and opens nothing; ``lifespan`` is for who does.

    ``names``: by which it may be asked; by default any, for what is reached through something that looks after it.
    """
    settings = state.settings
    middleware = [
        Middleware(WithoutPrefix, prefix=settings.root_path),
        Middleware(Leases),
        Middleware(SendTimeout, seconds=settings.send_seconds),
        Middleware(Observed),
    ]
    if names is not None:
        middleware.append(Middleware(TrustedHosts, names=names))
    if settings.cors_origins:
        middleware.append(
            Middleware(
                Origins,
                allow_origins=settings.cors_origins,
                allow_methods=["DELETE", "GET", "HEAD", "POST"],
                # Clients for browsers send headers of their own, which say what they are and run on.
                allow_headers=["*"],
                expose_headers=["request-id", "retry-after", "x-generation-id", "x-request-id"],
            )
        )
    middleware += [
        Middleware(Failures),
        Middleware(HeadAsGet),
        Middleware(KeyCheck, keys=state.keys),
        Middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.body_seconds),
        Middleware(Unpacked, limit=settings.max_body_bytes),
    ]
    app = FastAPI(
        title="Ladle",
        description=_DESCRIPTION,
        version=version("ladle"),
        lifespan=lifespan,
        middleware=middleware,
        # FastAPI's own pages load scripts from another host; ours is below.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
    )
    app.state.server = state
    api_errors.install(app)
    wrong_paths.install(app)
    app.add_exception_handler(ClientGone, _nobody)
    # The routes themselves: a router that is included is made anew at the first request, while everybody waits.
    for module in (*_MODULES, *((playground,) if settings.playground else ())):
        app.router.routes.extend(module.router.routes)
    if settings.playground:
        playground.assets()  # read now, for the same reason

    _document(app, keys=state.keys is not None)
    described = _Description(app)

    # No coroutines: these run beside the event loop, which would stand still while the description is made.
    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(described()[0])

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return Response(described()[1], media_type="application/json")

    return app


class _Description:
    """What an application says of itself, made when it is first asked for: as a page, and as an OpenAPI document."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._made: tuple[str, bytes] | None = None

    def __call__(self) -> tuple[str, bytes]:
        with self._lock:
            if self._made is None:
                document = self._app.openapi()
                self._made = render(document), json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
            return self._made


def _document(app: FastAPI, keys: bool) -> None:
    """FastAPI documents a 422 wherever there is a body; here a bad body is a 400, which every route lists itself.

    ``keys``: whether calls need one, which a middleware looks after that FastAPI does not know of.
    """
    complete = app.openapi

    def schema() -> dict[str, Any]:
        document = complete()
        for path, methods in document["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if "requestBody" in operation:
                    operation["responses"].setdefault("408", _error("the body did not arrive in time"))
                if path.startswith(PROTECTED):
                    operation["responses"].setdefault("403", _error("the API key is not for this"))
                    if keys:
                        operation["security"] = [{"key": []}]
        document["components"]["schemas"].update(EVENT_SHAPES)
        if keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = schema  # type: ignore[method-assign]


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorReply"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


async def _nobody(_: Request, __: Exception) -> Response:
    """Nobody is there to read it; 499 is what proxies log for a client that left."""
    api_errors.ApiError(499, "", code="client_closed_request").note()
    return Response(status_code=499)
