"""Questions to the base about an answer, or about the beginning of one: how likely yes and no are after them."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from ladle.guidance.plan import Plan, PromptView, Source
from ladle.server.engine.requests.request import GenerationRequest
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
    before = (*request.prompt, *said, *asked)
    own = replace(
        request,
        plan=Plan(request.plan.method, None, None, (source,), "none", False, ()),
        sampling=SamplingParams(max_tokens=0, prompt_logprobs=True, judged_from=len(before)),
        views={},
        grammar=None,
        thinking=None,
        answer=None,
    )
    said_yes, said_no = (
        replace(own, request_id=f"{request.request_id}/{name}.{word}", prompt=(*before, token))
        for word, token in (("yes", yes), ("no", no))
    )
    return AskedRequests(said_yes, said_no, tokens=2 * (len(asked) + 1))
