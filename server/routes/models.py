"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse

from ladle.server.replies.reply_types import ModelList, ModelReply
from ladle.server.routes import answers, serving_of, state_of
from ladle.server.serving import Serving
from ladle.server.steering import model_ids, plan_of

router = APIRouter()


@router.get("/v1/models", summary="Model names", responses=answers(ModelList, 401, 503), response_model=None)
async def models(request: Request) -> JSONResponse:
    """The names of every family: itself, itself with each method it can serve, and its presets."""
    state = state_of(request)
    state.require()
    served = [hosted.live for hosted in state.hosting.families.values()]
    data = [_model(serving, name) for serving in served for name in model_ids(serving.family)]
    return JSONResponse({"object": "list", "data": data})


# A model name may hold slashes.
@router.get(
    "/v1/models/{model:path}",
    summary="One model",
    responses=answers(ModelReply, 400, 401, 404, 503),
    response_model=None,
)
async def model_by_name(model: str, request: Request) -> JSONResponse:
    """Any name that a request may use as `model`, with preference too."""
    if not model:
        raise HTTPException(404)
    serving = serving_of(request, model)
    plan_of(serving.family, model, None)
    return JSONResponse(_model(serving, model))


def _model(serving: Serving, name: str) -> ModelReply:
    longest = serving.engine.max_context
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": "ladle",
        "max_model_len": longest,
    }
