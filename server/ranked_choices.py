"""Answers and their scores: the choices of a request in order, and texts that are only judged."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence

from ladle.guidance.plan import Plan
from ladle.merging.exceptions import InputError
from ladle.server.access.callers import Caller, Meter
from ladle.server.api_errors import Overflow, context_overflow
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.scores.prompt_scores import why_not
from ladle.server.fields.token_ids import TokenIds
from ladle.server.generation import Job, salt_of
from ladle.server.prompts import Prompt
from ladle.server.replies.choices import Choice
from ladle.server.serving import Serving
from ladle.server.state import ServerState

_MOST = sys.float_info.max


def best_first(job: Job, choices: Sequence[Choice]) -> list[Choice]:
    """The choices that are returned, prompt by prompt: with a ranking the best of each, best first, equal ones in the
    order in which they were asked for, and those that a monitor ended last; without one all, as they are."""
    if job.plan.rank is None:
        return list(choices)
    best: list[Choice] = []
    for start in range(0, len(choices), job.choices):
        own = choices[start : start + job.choices]
        best += sorted(own, key=_score, reverse=True)[: job.kept]
    return best


def _score(choice: Choice) -> tuple[bool, float, float]:
    score = choice.last.score
    assert score is not None, "with a ranking every answer has a score"
    return choice.last.tripped is None, score.value, score.second


def number(score: float) -> float:
    """A score that JSON can carry: the greatest number there is stands for infinity."""
    return min(_MOST, max(-_MOST, score))


def require_judges(plan: Plan) -> None:
    """Raise InputError where nothing but an answer that grows has a likelihood under ``plan``."""
    reason = why_not(plan)
    if plan.rank is not None and plan.rank.by == "likelihood" and reason:
        reason = f"method {plan.method} {reason}, which leaves a given text without a likelihood"
        raise InputError("by", "likelihood", reason=reason)


def scoring_job(
    state: ServerState,
    serving: Serving,
    plan: Plan,
    prompt: Prompt,
    texts: Sequence[TokenIds],
    cache_salt: str | None,
    caller: Caller,
    meter: Meter | None,
) -> Job:
    """What judges ``texts`` as answers to ``prompt``: a request each, which generates nothing.

    Raises:
        ApiError: prompt and text do not fit the context.
        InputError: the request is larger than this server lets one be.
    """
    settings, context = state.settings, serving.engine.max_context
    for index, text in enumerate(texts):
        if prompt.longest + len(text) + prompt.question > context:
            asked = f", the question of {prompt.question_field} {prompt.question}" if prompt.question else ""
            reason = f"{prompt.longest_field} has {prompt.longest} tokens{asked} and the text {len(text)}"
            overflow = Overflow(context, prompt.longest + prompt.question, len(text))
            raise context_overflow(overflow, reason, f"texts[{index}]")
    salt, sampling = salt_of(state, cache_salt, caller), SamplingParams(max_tokens=0)
    requests = tuple(
        GenerationRequest(uuid.uuid4().hex, prompt.ids, plan, sampling, prompt.views, salt=salt, answer=text)
        for text in texts
    )
    waiting, size = sum(request.prompt_cost for request in requests), sum(len(prompt) + len(text) for text in texts)
    if len(texts) > min(settings.max_choices, settings.max_queue):
        most = min(settings.max_choices, settings.max_queue)
        raise InputError("texts", f"{len(texts)} texts", f"at most {most}")
    if waiting > settings.max_queue_tokens and len(texts) > 1:
        reason = f"this makes {waiting} tokens to compute; at most {settings.max_queue_tokens} may wait here"
        raise InputError("texts", f"{len(texts)} texts", reason=reason)
    if settings.max_request_tokens is not None and size > settings.max_request_tokens:
        reason = f"prompt and texts are {size} tokens; this server allows {settings.max_request_tokens} per request"
        raise InputError("texts", f"{len(texts)} texts", reason=reason)
    return Job(plan, (prompt,), len(texts), 0, requests, caller, meter)
