"""``POST /v1/chat/completions``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladle.server.chat_jobs import chat_job
from ladle.server.generation import collect
from ladle.server.http.disconnect import unless_gone
from ladle.server.openai.chat_reply import ChatStream, chat_completion
from ladle.server.openai.completion_requests import ChatCompletionRequest
from ladle.server.replies.reply_types import ChatChunk, ChatCompletion
from ladle.server.routes import reader_of, serving_of, state_of, streamed
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.streaming import stream_response

router = APIRouter(route_class=GeneratingRoute)


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    responses=streamed(ChatCompletion, ChatChunk, 400, 401, 404, 413, 415, 429, 500, 503),
    response_model=None,
)
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
    """OpenAI's chat completions. Fields are listed below; any other field is refused by name."""
    state = state_of(request)
    serving = serving_of(request, body.model)
    chat = await chat_job(state, serving, reader_of(request), body)
    job, logprobs = chat.job, bool(body.logprobs)
    if body.stream:
        writer = ChatStream(serving, job, chat.model, logprobs, body.usage_in_stream, chat.calling)
        return await stream_response(state, serving, job, writer)
    choices = await unless_gone(request, collect(state, serving, job))
    reply = chat_completion(serving, job, chat.model, choices, logprobs, chat.calling, body.prompt_logprobs)
    return JSONResponse(reply)
