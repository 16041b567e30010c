"""Whether a request can ever run: judged when it comes, not when its turn does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from ladle.guidance.schedule import inside
from ladle.merging.exceptions import InputError
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sequence import Change, Lane
from ladle.server.engine.requests.sequence import Sequence as Generated
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.scores.prompt_scores import why_not
from ladle.server.engine.served_models import ServedModels


def check_request(
    request: GenerationRequest, models: ServedModels, config: EngineConfig, max_context: int, blocks: int
) -> list[Lane]:
    """The lanes of ``request``.

    Args:
        max_context: longest prompt plus continuation, in tokens.
        blocks: size of the KV pool.

    Raises:
        InputError: it can never run here.
    """
    # Those that judge the answer, or its blocks, have their turn one by one.
    judging = (*request.plan.ranking, *request.plan.choosing)
    alone = [replace(request.plan, sources=(source,), routing=None) for source in judging]
    writes = request.answer is None or not alone
    lanes = models.lanes(request) if writes else []
    judges = [lane for plan in alone for lane in models.lanes(replace(request, plan=plan))]
    prompts = list(dict.fromkeys([request.prompt, *(lane.prompt for lane in (*lanes, *judges))]))
    # A question about the answer comes behind it, so that it needs room in the same context.
    asked = max((len(ids) for view, ids in request.views.items() if view.asks), default=0)
    _check_lengths(request, prompts, max_context - asked)
    for prompt in prompts:
        _check_ids("prompt", prompt, models.vocabulary)
    _check_ids("texts", request.answer or (), models.vocabulary)
    _check_ids("logit_bias", [token for token, _ in request.sampling.logit_bias], models.vocabulary)
    if len(lanes) > config.lanes:
        raise InputError("steering", f"{len(lanes)} sources", f"at most {config.lanes} sources")
    reason = why_not(request.plan)
    if reason and writes and (request.sampling.prompt_logprobs or not request.sampling.max_tokens):
        name = "prompt_logprobs" if request.sampling.prompt_logprobs else "max_tokens"
        value = request.sampling.prompt_logprobs or request.sampling.max_tokens
        raise InputError(name, value, reason=f"method {request.plan.method} {reason}")
    scorer = request.plan.scorer
    if scorer is not None and scorer.candidates > models.vocabulary:
        allowed = f"at most {models.vocabulary}, the size of the vocabulary"
        raise InputError("steering.candidates", scorer.candidates, allowed)
    for plan in ([request.plan] if writes else []) + alone:
        merged = models.merged_sets(plan)
        taken = sum(merged.values())
        if taken > config.weights_memory:
            allowed = f"{config.weights_memory} bytes (weights_memory) of merged weights; they take {taken}"
            raise InputError("steering", f"{len(merged)} sets of merged full weights", allowed)
    length = request.sampling.max_tokens + len(request.answer or ())
    # The most that any part of the request needs by itself: writing on all lanes, each judge, each question.
    needed = Scheduler.blocks_for(Generated(request, lanes), length)
    needed = max([needed, *(-(-(len(lane.prompt) + length) // BLOCK_SIZE) for lane in judges)])
    needed = max(needed, -(-(len(request.prompt) + length + asked) // BLOCK_SIZE))
    if needed > blocks:
        reason = (
            f"with {len(lanes)} lanes and a prompt of {max(map(len, prompts))} tokens this takes {needed} blocks of "
            f"{BLOCK_SIZE} tokens; the KV pool has {blocks}"
        )
        raise InputError("max_tokens", request.sampling.max_tokens, reason=reason)
    return lanes


def check_schedule(request: GenerationRequest, check: Callable[[GenerationRequest], list[Lane]]) -> deque[Change]:
    """What the schedule of ``request``'s plan makes of it; ``check``: see ``check_request``. Raises InputError for a
    part that can never run here."""
    changes: deque[Change] = deque()
    for index, part in enumerate(request.plan.schedule, start=1):
        later = replace(request, plan=part.plan)
        try:
            changes.append(Change(part.start, later, check(later)))
        except InputError as error:
            if not error.field.startswith("steering"):
                raise
            raise inside(index, error) from None
    return changes


def _check_lengths(request: GenerationRequest, prompts: list[tuple[int, ...]], max_context: int) -> None:
    wanted, longest = request.sampling.max_tokens + len(request.answer or ()), max(map(len, prompts))
    if not all(prompts):
        raise InputError("prompt", "", "at least one token")
    if longest >= max_context:
        raise InputError("prompt", f"{longest} tokens", f"at most {max_context - 1} tokens in this context")
    if longest + wanted > max_context:
        allowed = f"at most {max_context - longest} after a prompt of {longest} tokens"
        raise InputError("max_tokens", wanted, allowed)


def _check_ids(field: str, ids: Sequence[int], vocabulary: int) -> None:
    # On the event loop, for every sequence: by functions that are written in C.
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        stranger = next(token for token in ids if not 0 <= token < vocabulary)
        raise InputError(field, stranger, f"token ids from 0 to {vocabulary - 1}")
