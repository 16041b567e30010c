"""The answers that are being written: whose they are, and how they are steered from here on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ladle.guidance.plan import Plan
from ladle.merging.exceptions import InputError
from ladle.server.access.callers import Caller
from ladle.server.api_errors import ApiError, unavailable
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.serving import Serving


class LiveAnswer:
    """The sequences of one HTTP request, which change together. For the event loop's thread.

    Attributes:
        caller: whose request it is, who alone may change it and pays for it.
        plan: what steers it now; where a schedule changes several choices, the plan that began last.
    """

    def __init__(self, serving: Serving, caller: Caller, requests: Sequence[GenerationRequest], most: int) -> None:
        """``most``: how often it may change, the parts of its schedule counted."""
        self.serving = serving
        self.caller = caller
        self.plan = requests[0].plan
        self._requests = requests
        self._most = most
        self._changes = len(self.plan.schedule)
        self._told = False

    def began(self, request: GenerationRequest, output: StepOutput) -> int:
        """The first token of a part came. Returns how many tokens its caller owes for the state that was computed anew;
        for a change that was asked for on the way that has been paid."""
        assert output.began is not None
        if not scheduled(request, output.began):
            return 0
        if not self._told:
            self.plan = output.began
        return _anew(request, output.began, output.completion_tokens - 1)

    def require_changeable(self) -> None:
        """Raise ApiError (409) for an answer that cannot be steered on its way, or has been as often as it may."""
        if self.plan.blocks is not None:
            option = self.plan.blocks.option
            message = f"this answer chooses among whole blocks ({option}), which are steered from its beginning on"
            raise ApiError(409, message, code="not_steerable")
        if self._changes >= self._most:
            message = f"the steering of this answer has changed {self._changes} times; allowed: {self._most} times"
            raise ApiError(409, message, code="too_many_changes")

    async def change(self, plan: Plan) -> list[int | None]:
        """Steer every choice by ``plan`` from its next token on, in place of what is left of a schedule.

        Returns:
            How many tokens of each were steered otherwise; None for one that has ended.

        Raises:
            ApiError: 409, see ``require_changeable``; 503.
            InputError: the plan cannot run here, or not on the prompt as it was read.
        """
        self.require_changeable()
        views = self._requests[0].views
        for view in plan.views:
            if view not in views:
                reason = "its sources see the prompt as it was read for this answer; a schedule may have others"
                raise InputError("steering", f"a plan with another {view.kind} prompt", reason=reason)
        # Nothing is waited for up to here, so that changes are made in the order in which they came.
        try:
            told = self.serving.engine.steer([replace(request, plan=plan) for request in self._requests])
        except RuntimeError:
            raise unavailable("the server is shutting down", "draining") from None
        self.plan, self._told = plan, True
        self._changes += 1
        counts = await told
        for request, count in zip(self._requests, counts, strict=True):
            if count is not None:
                self.caller.spend(_anew(request, plan, count))
        return counts


def scheduled(request: GenerationRequest, plan: Plan) -> bool:
    """Whether ``plan`` is a part of the schedule that ``request`` came with."""
    return any(part.plan is plan for part in request.plan.schedule)


def require_few_parts(plan: Plan, most: int) -> None:
    """Raise InputError for a schedule with more than ``most`` changes."""
    if len(plan.schedule) > most:
        raise InputError("steering.schedule", f"{len(plan.schedule) + 1} parts", f"at most {most + 1} parts here")


def token_cost(plan: Plan) -> int:
    """Tokens that a token that is drawn is charged as: one for each language model of the plan, one for each candidate
    that a value judges, and one for each source that judges the answer or its blocks, or watches it; the base that
    monitors ask about it is one."""
    models = sum(not source.head for source in plan.sources)
    values = (len(plan.sources) - models) * plan.scorer.candidates if plan.scorer is not None else 0
    judges = len(plan.blocks.sources) if plan.blocks is not None else 0
    return models + values + judges + len(plan.ranking) + len(plan.watching) + len(plan.asking)


def cost_of(output: StepOutput, cost: int) -> int:
    """Tokens that ``output`` is charged as where a token that is drawn is charged as ``cost``: those that a monitor
    took back were written as well, and its questions were read; of a search, those that it did not keep, too."""
    drawn = (output.token >= 0) + output.unseen if output.spent is None else output.spent.tokens
    return cost * drawn + output.asked


def _anew(request: GenerationRequest, plan: Plan, said: int) -> int:
    """Tokens that a change to ``plan`` is charged as: what each of its sources reads, the prompt and what was said."""
    return sum(len(request.prompt_of(source)) + said for source in (*plan.sources, *plan.watching))
