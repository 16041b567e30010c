"""``POST /v1/responses``, the count of what it would read, and ``GET`` and ``DELETE`` of answers that are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from ladle.merging.exceptions import InputError
from ladle.server.access.callers import Caller
from ladle.server.access.security import caller_of
from ladle.server.api_errors import ApiError
from ladle.server.chat_jobs import chat_job, prompt_tokens
from ladle.server.fields.chat_messages import Message
from ladle.server.fields.conversation import Conversation
from ladle.server.generation import collect
from ladle.server.http.disconnect import unless_gone
from ladle.server.http.json_request import JsonRoute
from ladle.server.reader import Reader
from ladle.server.replies.kept_responses import Kept
from ladle.server.replies.responses import DeletedReply, InputItemsReply, InputTokensReply, ResponseEvent, ResponseReply
from ladle.server.responses.input_items import input_items, page
from ladle.server.responses.response_reply import ResponseStream, answer_of, response
from ladle.server.responses.response_requests import SPELLING, ResponsesRequest
from ladle.server.routes import answers, reader_of, serving_of, state_of, streamed
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.state import ServerState
from ladle.server.streaming import stream_response

generating = APIRouter(route_class=GeneratingRoute)
counting = APIRouter(route_class=JsonRoute)
router = APIRouter()
Id = Annotated[str, Path(max_length=200)]


@generating.post(
    "/v1/responses",
    summary="Answer items, or go on from an answer that is kept",
    responses=streamed(ResponseReply, ResponseEvent, 400, 401, 404, 413, 415, 429, 500, 503),
    response_model=None,
)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """OpenAI's Responses API. Fields are listed below; any other field is refused by name."""
    state, caller = state_of(request), caller_of(request.scope)
    serving = serving_of(request, body.model)
    reader = reader_of(request)
    asked, asked_for = await _read(state, caller, reader, body)

    def keep(reply: ResponseReply) -> None:
        if body.keeps:
            state.responses.put(caller, Kept.of(reply, asked_for, answer_of(reply)))

    with SPELLING.applied():
        chat = await chat_job(state, serving, reader, asked)
        if body.stream:
            return await stream_response(state, serving, chat.job, ResponseStream(chat, body, keep))
        (choice,) = await unless_gone(request, collect(state, serving, chat.job))
    reply = response(chat, body, choice)
    keep(reply)
    return JSONResponse(reply)


@counting.post(
    "/v1/responses/input_tokens",
    summary="Count the tokens of items",
    responses=answers(InputTokensReply, 400, 401, 404, 413, 415, 429, 503),
    response_model=None,
)
async def input_tokens(body: ResponsesRequest, request: Request) -> JSONResponse:
    """The tokens of the prompt that `/v1/responses` would make of it. Nothing is generated."""
    state = state_of(request)
    serving = serving_of(request, body.model)
    reader = reader_of(request, generates=False)
    asked, _ = await _read(state, caller_of(request.scope), reader, body)
    with SPELLING.applied():
        count = await prompt_tokens(state, serving, reader, asked)
    reply: InputTokensReply = {"object": "response.input_tokens", "input_tokens": count}
    return JSONResponse(reply)


@router.get(
    "/v1/responses/{response_id}",
    summary="An answer that is kept",
    responses=answers(ResponseReply, 400, 401, 404),
    response_model=None,
)
async def kept_response(
    response_id: Id,
    request: Request,
    stream: Annotated[bool, Query(description="false: what is kept is complete")] = False,
) -> JSONResponse:
    """The answer as it was sent. Each caller's newest answers are kept in memory, unless they were asked for with
    `store: false`; another caller's are not found."""
    if stream:
        raise InputError("stream", True, reason="an answer that is kept is sent as a whole")
    kept = state_of(request).responses.get(caller_of(request.scope), response_id)
    if kept is None:
        raise _unknown(response_id)
    return JSONResponse(kept.reply)


@router.get(
    "/v1/responses/{response_id}/input_items",
    summary="What an answer that is kept was asked",
    responses=answers(InputItemsReply, 400, 401, 404),
    response_model=None,
)
async def input_items_of(
    response_id: Id,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="how many items, at most")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="desc: the newest comes first")] = "desc",
    after: Annotated[str | None, Query(max_length=200, description="the id of the item before the first one")] = None,
    include: Annotated[list[str] | None, Query(description="parts of items that none here has")] = None,
) -> JSONResponse:
    """All items of the conversation before the answer, those of answers that it went on from too."""
    kept = state_of(request).responses.get(caller_of(request.scope), response_id)
    if kept is None:
        raise _unknown(response_id)
    return JSONResponse(page(input_items(response_id, kept.asked), limit, order == "desc", after))


@router.delete(
    "/v1/responses/{response_id}",
    summary="Forget an answer",
    responses=answers(DeletedReply, 400, 401, 404),
    response_model=None,
)
async def delete_response(response_id: Id, request: Request) -> JSONResponse:
    """Answers that went on from it stay as they are."""
    if not state_of(request).responses.delete(caller_of(request.scope), response_id):
        raise _unknown(response_id)
    reply: DeletedReply = {"id": response_id, "object": "response", "deleted": True}
    return JSONResponse(reply)


async def _read(
    state: ServerState, caller: Caller, reader: Reader, body: ResponsesRequest
) -> tuple[Conversation, list[Message]]:
    """The conversation that is asked about, and its messages without the instructions. Raises ApiError, InputError."""
    earlier = () if body.previous_response_id is None else _previous(state, caller, body.previous_response_id).messages
    known = state.responses.items(caller, body.referenced)

    def conversation() -> tuple[Conversation, list[Message]]:
        told = body.told(known.get)
        asked = body.chat(told, earlier, known.get)
        return asked, asked.messages[len(told) :]

    return await reader.made(body.parts, conversation)


def _previous(state: ServerState, caller: Caller, name: str) -> Kept:
    answer = state.responses.get(caller, name)
    if answer is None:
        message = f"previous_response_id: no answer {name[:200]!r} is kept here; send the conversation itself"
        raise ApiError(400, message, param="previous_response_id", code="previous_response_not_found")
    return answer


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"no answer {name[:200]!r} is kept here", param="response_id", code="response_not_found")


router.routes.extend([*generating.routes, *counting.routes])
