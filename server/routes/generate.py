"""``POST /v1/generate``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladle.server.access.security import caller_of
from ladle.server.fields.tool_calling import ToolCalling, answer_grammar
from ladle.server.generation import collect, make_job, require_few
from ladle.server.http.disconnect import unless_gone
from ladle.server.native.reply import GenerateStream, generated
from ladle.server.native.requests import GenerateRequest
from ladle.server.prompts import encode_chat, encode_prompt
from ladle.server.replies.types import Generated, TokenEvent
from ladle.server.routes import reader_of, serving_of, state_of, streamed
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.steering import plan_of
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
    caller = caller_of(request.scope)
    serving = serving_of(request, body.model)
    plan = plan_of(serving.family, body.model, body.steering, state.settings.allow_trace)
    reader = reader_of(request)
    require_few(state.settings, body.choices, 1)
    calling = ToolCalling.of(serving, body)
    if body.messages is not None:
        form = body.chat_form(state.settings.special_tokens_in_messages)
        tools = calling.definitions if calling else ()
        prompt = await encode_chat(serving, reader, body.messages, plan.views, tools, form)
    else:
        assert body.prompt is not None, "the schema has checked it"
        prompt = await encode_prompt(serving, reader, body.prompt, views=plan.views)
    grammar = await answer_grammar(serving, body, calling, reader.compile)
    job = make_job(
        state,
        serving,
        plan,
        [prompt],
        body,
        body.max_tokens,
        body.alternatives,
        grammar=grammar,
        stop=calling.stop if calling else (),
        caller=caller,
        meter=reader.meter,
    )
    model = body.model or serving.family.name
    if body.stream:
        writer = GenerateStream(serving, job, model, bool(body.top_logprobs), calling)
        return await stream_response(state, serving, job, writer)
    choices = await unless_gone(request, collect(state, serving, job))
    top = bool(body.top_logprobs)
    reply = generated(serving, job, model, choices, body.wants_tokens, top, body.prompt_logprobs, calling)
    return JSONResponse(reply)
