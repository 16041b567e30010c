"""What is asked about an answer, or about the beginning of one: how likely it is, and how likely yes and no are after
it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from ladle.guidance.plan import Plan, PromptView, Source
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams


@dataclass(frozen=True)
class AskedRequests:
    """What asks one question.

    Attributes:
        yes, no: each judges one token, its word, after the prompt, the answer and the question; all that comes before
            it is the same in both, so that the second one to run finds the state of the first.
        tokens: how many tokens of the question and its words both of them read.
    """

    yes: GenerationRequest
    no: GenerationRequest
    tokens: int


def ask(
    request: GenerationRequest,
    name: str,
    question: PromptView,
    answer: Sequence[int],
    ends: AbstractSet[int],
    source: Source,
) -> AskedRequests:
    """Put ``question`` to ``source`` behind ``answer``, an answer to the prompt of ``request``.

    Args:
        name: of what is asked, within the request.
        answer: its tokens so far. One that ends a text, as its last one, is left out: the question brings what ends a
            turn where the template has such a thing.
        ends: the tokens that end a text.
        source: a language model that sees the request's own prompt.
    """
    *asked, yes, no = request.views[question]
    said = answer[:-1] if answer and answer[-1] in ends else answer
    # Both requests share prompt, answer and question to the token, and judge the one word behind them.
    plan, before = bare(request.plan, (source,)), (*said, *asked)
    said_yes, said_no = (
        likelihood(request, f"{name}.{word}", plan, request.prompt, (*before, token), len(before))
        for word, token in (("yes", yes), ("no", no))
    )
    return AskedRequests(said_yes, said_no, tokens=2 * (len(asked) + 1))


def likelihood(
    request: GenerationRequest,
    name: str,
    plan: Plan,
    prompt: tuple[int, ...],
    answer: Sequence[int],
    judged: int = 0,
) -> GenerationRequest:
    """How likely ``answer`` is under ``plan`` after ``prompt``, its first ``judged`` tokens left out."""
    own = about(request, name, plan, SamplingParams(0, prompt_logprobs=True, judged_from=len(prompt) + judged))
    return replace(own, prompt=prompt + tuple(answer), views={})


def about(request: GenerationRequest, name: str, plan: Plan, sampling: SamplingParams) -> GenerationRequest:
    """What asks ``plan`` about a text that ``request`` brought about; whatever binds what that writes is left out."""
    return replace(
        request,
        request_id=f"{request.request_id}/{name}",
        plan=plan,
        sampling=sampling,
        grammar=None,
        thinking=None,
        answer=None,
    )


def by_itself(source: Source, seen: bool = True) -> Source:
    """``source`` as the only one that is asked. ``seen``: what it sees in place of the prompt is the prompt."""
    return replace(source, weight=1.0, view=None if seen else source.view)


def bare(plan: Plan, sources: tuple[Source, ...]) -> Plan:
    """A plan that says what ``sources`` say, and does nothing else of what ``plan`` does."""
    return Plan(plan.method, plan.preference, None, sources, "none", False, ())


def said(output: StepOutput) -> float:
    """What a question was answered with: a value, or the log-probability of all tokens that it is about."""
    if output.value is not None:
        return output.value
    return math.fsum(token.logprob for token in output.prompt or ())


def logistic(x: float) -> float:
    """1 / (1 + e^-x), which no x overflows."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
