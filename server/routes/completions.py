"""``POST /v1/completions``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladle.server.access.security import caller_of
from ladle.server.fields.output_format import grammar_of
from ladle.server.generation import collect, make_job, require_few, require_place
from ladle.server.http.disconnect import unless_gone
from ladle.server.openai.completion_reply import CompletionStream, completion
from ladle.server.openai.completion_requests import DEFAULT_COMPLETION_TOKENS, CompletionRequest
from ladle.server.openai.echo import echoes
from ladle.server.prompts import encode_prompt
from ladle.server.replies.reply_types import Completion
from ladle.server.routes import reader_of, serving_of, state_of, streamed
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.steering import plan_of
from ladle.server.streaming import stream_response

router = APIRouter(route_class=GeneratingRoute)


@router.post(
    "/v1/completions",
    summary="Continue one or several texts",
    responses=streamed(Completion, Completion, 400, 401, 404, 413, 415, 429, 500, 503),
    response_model=None,
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """OpenAI's legacy completions: a prompt is a string or a list of token ids, and there may be several.

    As in OpenAI's API, max_tokens defaults to 16 here, and `echo` puts the prompt in front of the answer. Together with
    `logprobs` it also says how likely the prompt's own tokens are; with `max_tokens: 0` that is all.
    """
    state = state_of(request)
    caller = caller_of(request.scope)
    serving = serving_of(request, body.model)
    plan = plan_of(serving.family, body.model, body.steering, state.settings.allow_trace)
    reader = reader_of(request)
    require_few(state.settings, body.choices, len(body.prompt))
    prompts = []
    for index, prompt in enumerate(body.prompt):
        field = "prompt" if len(body.prompt) == 1 else f"prompt[{index}]"
        special = body.add_special_tokens is not False
        prompts.append(await encode_prompt(serving, reader, prompt, field, plan.views, special))
        # Found out as soon as it is so: what is read beyond that would be read in vain.
        require_place(state, plan, prompts, body.choices, len(body.prompt))
    limit = body.max_tokens
    if limit is None:
        longest = max(prompt.longest for prompt in prompts)
        limit = max(1, min(DEFAULT_COMPLETION_TOKENS, serving.engine.max_context - longest))
    echo = None
    if body.echo:
        echo = echoes(serving, plan, body.prompt, prompts, body.judges_prompt, limit, body.logprobs)
    grammar = await grammar_of(serving, body, reader.compile)
    job = make_job(
        state,
        serving,
        plan,
        prompts,
        body,
        limit,
        body.logprobs,
        prompt_logprobs=body.judges_prompt,
        grammar=grammar,
        caller=caller,
        meter=reader.meter,
    )
    model = body.model or serving.family.name
    if body.stream:
        writer = CompletionStream(serving, job, model, body.logprobs, body.usage_in_stream, echo)
        return await stream_response(state, serving, job, writer)
    choices = await unless_gone(request, collect(state, serving, job))
    return JSONResponse(completion(serving, job, model, choices, body.logprobs, echo, body.prompt_logprobs))
