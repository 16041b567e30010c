"""Traces as answers show them, token by token and summed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ladle.guidance.diagnostics.compatibility import BEST, OFTEN_OUTSIDE
from ladle.guidance.plan import Plan
from ladle.server.engine.requests.request import Block, StepOutput
from ladle.server.replies.monitors import TripReply
from ladle.server.replies.parts import SteeringPart
from ladle.server.replies.reply_types import Alternative, Diagnostics, SteeringReply, Token, TracedChoice
from ladle.server.replies.search import SearchedChoice
from ladle.server.replies.thoughts import VerifiedChoice
from ladle.server.serving import Serving
from ladle.server.text.token_text import finite

_FEWEST = 3  # tokens; fewer may be chance


def token(serving: Serving, output: StepOutput, top: bool = False) -> Token:
    """One token as traces show it; ``top`` lists its alternatives."""
    reply: Token = {
        "id": output.token,
        "text": output.text,
        "logprob": finite(output.logprob),
        "base_logprob": None if output.base_logprob is None else finite(output.base_logprob),
        "shift": None if output.shift is None else bounded(output.shift),
        "expert": output.expert,
    }
    trace = output.trace
    if trace is not None:
        reply["argmax_changed"] = trace.argmax_changed
        reply["entropy"] = finite(trace.entropy)
        reply["outside"] = trace.outside
        reply["candidate_mass"] = trace.candidate_mass
        reply["values"] = None if trace.values is None else dict(trace.values)
        if trace.monitors is not None:
            reply["monitors"] = dict(trace.monitors)
        if trace.router is not None:
            reply["router"] = {name: finite(score) for name, score in trace.router.items()}
    if output.reasoning is not None:
        reply["reasoning_content"] = output.reasoning
    if output.checked is not None:
        reply["checked"] = {"yes": output.checked.likely, "ends": output.checked.ends}
    if output.began is not None:
        reply["part"] = {"method": output.began.method, "preference": _preference(output.began)}
    if output.block is not None:
        reply["block"] = {"draws": output.block.draws, "score": _score(output.block)}
        if output.block.entropy is not None:
            reply["block"]["entropy"] = output.block.entropy
    if top:
        reply["top"] = [_alternative(serving, other, logprob) for other, logprob in output.top]
    return reply


def _alternative(serving: Serving, token: int, logprob: float) -> Alternative:
    return {"id": token, "text": serving.tokens.text(token), "logprob": finite(logprob)}


def _score(block: Block) -> float | None:
    return None if block.score is None else finite(block.score)


def _preference(plan: Plan) -> dict[str, float] | None:
    return None if plan.preference is None else plan.preference.as_dict()


def bounded(shift: float) -> float:
    """A divergence that JSON can carry; 9999 stands for infinite, as -9999 does for a logprob."""
    return min(9999.0, shift)


class TraceSummary:
    """What the tokens of one answer say of how it was steered, gathered while they come: who wrote them and, with
    traces, what guidance did."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._tokens: dict[int, list[Token]] = {}
        self._shifts: list[float] = []
        self._changed = 0
        self._outside: list[bool] = []
        self._experts: Counter[str | None] = Counter()
        self._parts = _Parts()
        self._stopped: list[TripReply] = []
        self._searched: dict[int, SearchedChoice] = {}
        self._verified: dict[int, VerifiedChoice] = {}

    def see(self, index: int, outputs: Iterable[StepOutput]) -> None:
        """Take in tokens of the choice ``index``."""
        for output in outputs:
            self._parts.see(index, output)
            if (trip := output.tripped) is not None:
                self._stopped.append({"index": index, "name": trip.monitor, "token": trip.token, "value": trip.value})
            if output.token >= 0:
                self._experts[output.expert] += 1
            if output.spent is not None:
                own = self._searched.setdefault(index, {"index": index, "blocks": 0, "draws": 0, "tokens": 0})
                own["blocks"] += output.block is not None
                own["draws"] += output.spent.draws
                own["tokens"] += output.spent.tokens
            if (checked := output.checked) is not None:
                thought = self._verified.setdefault(index, {"index": index, "checks": 0, "ended": None})
                thought["checks"] += 1
                thought["ended"] = checked.token if checked.ends else None
            if output.trace is None:
                continue
            self._tokens.setdefault(index, []).append(token(self._serving, output))
            self._shifts.append(bounded(output.trace.shift))
            self._changed += output.trace.argmax_changed
            if output.trace.outside is not None:
                self._outside.append(output.trace.outside)

    def add_to(self, reply: SteeringReply, tokens: bool = False) -> SteeringReply:
        """``reply`` with diagnostics, and with the traced ``tokens`` where the answer has no other place for them."""
        total = self._experts.total()
        routed = {name: count / total for name, count in sorted(self._experts.items(), key=str) if name is not None}
        if routed:
            reply["experts"] = routed
        if "monitor" in reply:
            reply["monitor"]["stopped"] = stopped = sorted(self._stopped, key=lambda one: one["index"])
            reply["warnings"] += [
                f"monitor {one['name']} ended answer {one['index']} at token {one['token']}: it said {one['value']:.4g}"
                for one in stopped
            ]
        if "search" in reply:
            reply["search"]["choices"] = [choice for _, choice in sorted(self._searched.items())]
        if self._verified:
            reply["thoughts"] = [thought for _, thought in sorted(self._verified.items())]
        parts = self._parts.reply(reply)
        if parts:
            reply["parts"] = parts
        if not self._shifts:
            return reply
        count = len(self._shifts)
        diagnostics: Diagnostics = {
            "tokens": count,
            "mean_shift": sum(self._shifts) / count,
            "argmax_changed": self._changed / count,
            "outside": sum(self._outside) / len(self._outside) if self._outside else None,
        }
        reply["diagnostics"] = diagnostics
        outside, guided = sum(self._outside), len(self._outside)
        if outside >= _FEWEST and outside > OFTEN_OUTSIDE * guided:
            reply["warnings"].append(
                f"base and guide fit badly: at {outside} of {guided} tokens the best one was not among the guided "
                f"base's {BEST} best; try a lower strength"
            )
        if tokens:
            choices: list[TracedChoice] = [
                {"index": index, "tokens": seen} for index, seen in sorted(self._tokens.items())
            ]
            reply["choices"] = choices
        return reply


class _Parts:
    """The parts of an answer whose steering changed on the way, in the order in which they came."""

    def __init__(self) -> None:
        self._choices: set[int] = set()
        self._first: set[int] = set()
        self._later: list[tuple[Plan, dict[int, int]]] = []

    def see(self, index: int, output: StepOutput) -> None:
        self._choices.add(index)
        if output.token < 0:
            return
        position = output.completion_tokens - 1
        if output.began is None:
            if position == 0:
                self._first.add(index)
            return
        known = next((starts for plan, starts in self._later if plan is output.began), None)
        if known is None:
            self._later.append((output.began, known := {}))
        known[index] = position

    def reply(self, first: SteeringReply) -> list[SteeringPart]:
        """Empty where nothing changed; ``first``: what is said of the plan that the answer began with."""
        if not self._later:
            return []
        choices = range(max(self._choices) + 1)
        parts: list[SteeringPart] = [
            {
                "starts": [0 if index in self._first else None for index in choices],
                "method": first["method"],
                "preference": first["preference"],
                "coefficients": first["coefficients"],
                "warnings": first["warnings"],
            }
        ]
        for plan, starts in self._later:
            parts.append(
                {
                    "starts": [starts.get(index) for index in choices],
                    "method": plan.method,
                    "preference": _preference(plan),
                    "coefficients": plan.coefficients.as_dict() if plan.coefficients else {},
                    "warnings": list(plan.warnings),
                }
            )
        return parts
