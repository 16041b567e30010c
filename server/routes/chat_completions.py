"""``POST /v1/chat/completions``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladle.server.access.security import caller_of
from ladle.server.fields.tool_calling import ToolCalling, answer_grammar
from ladle.server.generation import collect, make_job, require_few
from ladle.server.http.disconnect import unless_gone
from ladle.server.openai.chat_reply import ChatStream, chat_completion
from ladle.server.openai.requests import ChatCompletionRequest
from ladle.server.prompts import encode_chat
from ladle.server.replies.types import ChatChunk, ChatCompletion
from ladle.server.routes import reader_of, serving_of, state_of, streamed
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.steering import plan_of
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
    caller = caller_of(request.scope)
    serving = serving_of(request, body.model)
    plan = plan_of(serving.family, body.model, body.steering, state.settings.allow_trace)
    reader = reader_of(request)
    require_few(state.settings, body.choices, 1)
    calling = ToolCalling.of(serving, body)
    form = body.chat_form(state.settings.special_tokens_in_messages)
    prompt = await encode_chat(serving, reader, body.messages, plan.views, calling.definitions if calling else (), form)
    limit_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    grammar = await answer_grammar(serving, body, calling, reader.compile)
    job = make_job(
        state,
        serving,
        plan,
        [prompt],
        body,
        limit,
        body.alternatives,
        limit_field,
        grammar,
        calling.stop if calling else (),
        caller=caller,
        meter=reader.meter,
    )
    model = body.model or serving.family.name
    if body.stream:
        writer = ChatStream(serving, job, model, bool(body.logprobs), body.usage_in_stream, calling)
        return await stream_response(state, serving, job, writer)
    choices = await unless_gone(request, collect(state, serving, job))
    reply = chat_completion(serving, job, model, choices, bool(body.logprobs), calling, body.prompt_logprobs)
    return JSONResponse(reply)
