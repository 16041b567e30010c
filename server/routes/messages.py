"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladle.server.anthropic.message_reply import MessageEvent, MessageStream, message
from ladle.server.anthropic.message_requests import SPELLING, CountTokensRequest, MessagesRequest
from ladle.server.chat_jobs import chat_job, prompt_tokens
from ladle.server.generation import collect
from ladle.server.http.disconnect import unless_gone
from ladle.server.http.json_request import JsonRoute
from ladle.server.replies.anthropic import AnthropicError, MessageReply, TokenCount
from ladle.server.routes import answers, reader_of, serving_of, state_of, streamed
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.streaming import stream_response

generating = APIRouter(route_class=GeneratingRoute)
router = APIRouter(route_class=JsonRoute)


@generating.post(
    "/v1/messages",
    summary="Answer a conversation, in Anthropic's form",
    responses=streamed(MessageReply, MessageEvent, 400, 401, 404, 413, 415, 429, 500, 503, error=AnthropicError),
    response_model=None,
)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Anthropic's Messages API. Fields are listed below; any other field is refused by name."""
    state = state_of(request)
    serving = serving_of(request, body.model)
    with SPELLING.applied():
        reader = reader_of(request)
        asked = await reader.made(body.parts, body.conversation)
        chat = await chat_job(state, serving, reader, asked)
        if body.stream:
            return await stream_response(state, serving, chat.job, MessageStream(chat))
        (choice,) = await unless_gone(request, collect(state, serving, chat.job))
    return JSONResponse(message(chat, choice))


@router.post(
    "/v1/messages/count_tokens",
    summary="Count the tokens of a conversation, in Anthropic's form",
    responses=answers(TokenCount, 400, 401, 404, 413, 415, 429, 503, error=AnthropicError),
    response_model=None,
)
async def count_tokens(body: CountTokensRequest, request: Request) -> JSONResponse:
    """The tokens of the prompt that `/v1/messages` would make of it. Nothing is generated."""
    state = state_of(request)
    serving = serving_of(request, body.model)
    reader = reader_of(request, generates=False)
    asked = await reader.made(body.parts, body.conversation)
    with SPELLING.applied():
        reply: TokenCount = {"input_tokens": await prompt_tokens(state, serving, reader, asked)}
    return JSONResponse(reply)


router.routes.extend(generating.routes)
