"""``POST /v1/generate/{id}/steering``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ladle.server.access.security import caller_of
from ladle.server.api_errors import ApiError
from ladle.server.http.json_request import JsonRoute
from ladle.server.native.generate_requests import LiveSteeringRequest
from ladle.server.replies.reply_types import SteeringChange
from ladle.server.routes import answers, state_of
from ladle.server.steering import describe, plan_after

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/generate/{id}/steering",
    summary="Steer a running answer otherwise from its next token on",
    responses=answers(SteeringChange, 400, 401, 404, 409, 413, 415, 503),
    response_model=None,
)
async def live_steering(id: str, body: LiveSteeringRequest, request: Request) -> JSONResponse:
    """For answers that are streamed, by the key that asked for them; `id` is the stream's header `x-generation-id`, or
    the id of its chunks.

    What `steering` does not name stays as it is. All choices change, at their next tokens: `tokens` says how many each
    of them had by then, and null for one that had ended. Where the change is refused the answer goes on as it was.
    """
    answer = state_of(request).live.get(id.rpartition("-")[2])
    if answer is None or answer.caller is not caller_of(request.scope):
        raise _ended(id)
    answer.require_changeable()
    plan = plan_after(answer.serving.family, answer.plan, body.steering)
    tokens = await answer.change(plan)
    if all(count is None for count in tokens):
        raise _ended(id)
    reply: SteeringChange = {"id": id, "object": "steering.change", "tokens": tokens, "steering": describe(plan)}
    return JSONResponse(reply)


def _ended(id: str) -> ApiError:
    message = f"id: {id[:200]!r} is no answer of this key that is being written; it may have ended"
    return ApiError(404, message, param="id", code="answer_not_found")
