"""``POST /v1/score``."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ladle.merging.exceptions import InputError
from ladle.server.access.security import caller_of
from ladle.server.fields.token_ids import TokenIds
from ladle.server.generation import Job, collect, usage
from ladle.server.http.disconnect import unless_gone
from ladle.server.native.score_requests import ScoreRequest
from ladle.server.prompts import encode_chat, encode_prompt, tokens_of_answer
from ladle.server.ranked_choices import number, require_judges, scoring_job
from ladle.server.reader import Reader
from ladle.server.replies.choices import Choice
from ladle.server.replies.scores import ScoredText, Scores
from ladle.server.routes import answers, reader_of, serving_of, state_of
from ladle.server.routes.generating_route import GeneratingRoute
from ladle.server.serving import Serving
from ladle.server.steering import describe, plan_of

router = APIRouter(route_class=GeneratingRoute)


@router.post(
    "/v1/score",
    summary="How good given texts are",
    responses=answers(Scores, 400, 401, 404, 413, 415, 429, 500, 503),
    response_model=None,
)
async def score(body: ScoreRequest, request: Request) -> JSONResponse:
    """Scores of texts as answers to a prompt: what `steering.rank` says of answers that it makes itself. Nothing is
    generated. A text is tokenised by itself, behind the prompt's tokens."""
    state = state_of(request)
    serving = serving_of(request, body.model)
    plan = plan_of(serving.family, body.model, body.ranked)
    require_judges(plan)
    reader = reader_of(request)
    trusts = state.settings.special_tokens_in_messages
    if body.messages is not None:
        tools = [tool.definition() for tool in body.tools or ()]
        prompt = await encode_chat(serving, reader, body.messages, plan.views, tools, body.chat_form(trusts))
    else:
        assert body.prompt is not None, "the schema has checked it"
        prompt = await encode_prompt(serving, reader, body.prompt, views=plan.views)
        trusts = True
    texts = [await _tokens(serving, reader, body, index, trusts) for index in range(len(body.texts))]
    caller = caller_of(request.scope)
    job = scoring_job(state, serving, plan, prompt, texts, body.cache_salt, caller, reader.meter)
    choices = await unless_gone(request, collect(state, serving, job))
    return JSONResponse(_reply(job, body.model or serving.family.name, choices))


async def _tokens(serving: Serving, reader: Reader, body: ScoreRequest, index: int, trusts: bool) -> TokenIds:
    """The tokens of one text, with the one that ends it where that is asked for."""
    text = body.texts[index]
    if isinstance(text, str):
        text = await tokens_of_answer(serving, reader, text, trusts)
    elif max(text) >= serving.vocabulary:
        allowed = f"token ids from 0 to {serving.vocabulary - 1}"
        raise InputError(f"texts[{index}]", max(text), allowed)
    if not body.end:
        return text
    end = serving.engine.tokenizer.eos_token_id
    if not isinstance(end, int):
        raise InputError("end", True, reason="this tokenizer has no token that ends a text")
    return (*text, end)


def _reply(job: Job, model: str, choices: list[Choice]) -> Scores:
    scores: list[ScoredText] = []
    for index, (choice, request) in enumerate(zip(choices, job.requests, strict=True)):
        said = choice.last.score
        assert said is not None and request.answer is not None
        scores.append(
            {
                "index": index,
                "score": number(said.value),
                "tokens": len(request.answer),
                "parts": [
                    {"name": source.name, "weight": source.weight, "value": number(value)}
                    for source, value in said.parts
                ],
            }
        )
    steering = describe(job.plan)
    steering["rank"].pop("keep")  # all are given back
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "scores",
        "model": model,
        "created": int(time.time()),
        "scores": scores,
        "usage": usage(job, [choice.last for choice in choices]),
        "steering": steering,
    }
