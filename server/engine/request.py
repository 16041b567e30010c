"""What goes into the engine and what comes out of it, one value a token."""

from __future__ import annotations

from dataclasses import dataclass

from ladle.guidance.plan import Plan
from ladle.server.engine.sampling import SamplingParams


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to generate: the prompt's token ids, the plan that steers it and how to sample."""

    request_id: str
    prompt: tuple[int, ...]
    plan: Plan
    sampling: SamplingParams


@dataclass(frozen=True)
class StepOutput:
    """One generated token of one request.

    token_text: the text of this token alone, for display.
    text: what may be shown now. Text that could still become a stop string, or half a character, is held back; the
        concatenation of all `text` is the final text.
    logprob: log-softmax of the combined score before temperature and truncation, in nats.
    top: (token id, logprob) of the best alternatives, best first.
    base_logprob: the same token's logprob under the plain base, when the plan is traced.
    shift: KL(base, final) at this position in nats, when the plan is traced.
    finish_reason: None until the last output, then "stop", "length", "abort" or "error" (with `error` set). The token
        that hit the end-of-sequence id is included, with `text` empty.
    cached_tokens: prompt tokens whose state was reused.
    """

    request_id: str
    token: int
    token_text: str
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...]
    base_logprob: float | None
    shift: float | None
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: str | None = None
