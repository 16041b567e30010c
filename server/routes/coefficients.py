"""``POST /v1/coefficients``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ladle.merging.exceptions import InputError
from ladle.server.http.json_request import JsonRoute
from ladle.server.native.generate_requests import CoefficientsRequest
from ladle.server.replies.reply_types import CoefficientsReply
from ladle.server.routes import answers, serving_of, state_of
from ladle.server.steering import describe, plan_of, sources

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/coefficients",
    summary="What a preference becomes",
    responses=answers(CoefficientsReply, 400, 401, 404, 413, 415, 503),
    response_model=None,
)
async def coefficients(body: CoefficientsRequest, request: Request) -> JSONResponse:
    """The merge coefficients of a preference, without generating anything."""
    state = state_of(request)
    serving = serving_of(request, body.model)
    steering = body.steering or {"method": body.method, "preference": body.preference}
    try:
        plan = plan_of(serving.family, body.model, steering, state.settings.allow_trace)
    except InputError as error:
        if body.steering is not None:
            raise
        # The options stand in the body itself.
        raise error.at(error.field.removeprefix("steering.")) from None
    if plan.schedule:
        reason = "coefficients are those of one part at a time; ask for each by itself"
        raise InputError("steering.schedule", (body.steering or {})["schedule"], reason=reason)
    merged = plan.coefficients
    reply: CoefficientsReply = {
        "method": plan.method,
        "preference": plan.preference.as_dict() if plan.preference else None,
        "coefficients": merged.as_dict() if merged else {},
        "base_share": merged.base_share if merged else 1.0,
        "sources": sources(plan),
        "condition": merged.condition if merged else None,
        "l1": merged.l1 if merged else 0.0,
        "warnings": list(plan.warnings),
    }
    # What judges an answer is a part of its plan as well, and said to those who ask for it.
    said = describe(plan)
    if steering.get("rank") is not None:
        reply["rank"] = said["rank"]
    if steering.get("monitor") is not None:
        reply["monitor"] = said["monitor"]
    return JSONResponse(reply)
