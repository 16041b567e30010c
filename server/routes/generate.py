"""``POST /v1/generate``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladle.server.chat_jobs import answer_job
from ladle.server.generation import collect
from ladle.server.http.disconnect import unless_gone
from ladle.server.native.generate_reply import GenerateStream, generated
from ladle.server.native.generate_requests import GenerateRequest
from ladle.server.replies.reply_types import Generated, TokenEvent
from ladle.server.routes import reader_of, serving_of, state_of, streamed
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.streaming import stream_response

router = APIRouter(route_class=GeneratingRoute)


@router.post(
    "/v1/generate",
    summary="Generate with per-token traces",
    responses=streamed(Generated, TokenEvent | Generated, 400, 401, 404, 413, 415, 429, 500, 503),
    response_model=None,
)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """The native endpoint. With `steering.trace` every token says how far the steering moved it from the base."""
    state = state_of(request)
    serving = serving_of(request, body.model)
    chat = await answer_job(state, serving, reader_of(request), body, body.messages, body.prompt)
    top = bool(body.top_logprobs)
    if body.stream:
        writer = GenerateStream(serving, chat.job, chat.model, top, chat.calling)
        return await stream_response(state, serving, chat.job, writer)
    choices = await unless_gone(request, collect(state, serving, chat.job))
    tokens, scored = body.wants_tokens, body.prompt_logprobs
    return JSONResponse(generated(serving, chat.job, chat.model, choices, tokens, top, scored, chat.calling))
