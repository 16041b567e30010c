"""``GET /health`` (the process lives) and ``GET /ready`` (it can take work)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ladle.server.api_errors import unavailable
from ladle.server.routes import ERRORS, state_of
from ladle.server.state import Phase

router = APIRouter()


@router.get("/health", summary="Alive", responses={503: ERRORS[503]}, response_model=None)
async def health(request: Request) -> JSONResponse:
    """200 while the process can still become or stay useful; 503 once its engine has stopped, so restart it."""
    state = state_of(request)
    if state.phase is Phase.FAILED or (state.phase in (Phase.READY, Phase.PAUSED) and state.hosting.broken):
        raise unavailable(f"the server cannot recover: {state.unready()}", "engine_stopped")
    return JSONResponse({"status": "ok"})


@router.get("/ready", summary="Ready for work", responses={503: ERRORS[503]}, response_model=None)
async def ready(request: Request) -> JSONResponse:
    """503 with the reason while loading or draining, once the engine has stopped, and while merges or loads fail again
    and again."""
    state = state_of(request)
    reason = state.why_unready()
    if reason is not None:
        raise unavailable(f"not ready: {reason}", state.unready_code())
    failing = state.failing()
    if failing is not None:
        raise unavailable(f"not ready: {failing}", "failing")
    assert state.serving is not None
    return JSONResponse({"status": "ready", "family": state.serving.family.name})
