"""What finished answers are judged by: their likelihood, values of the family, its router, a question, or a vote."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ladle.guidance.plan import Plan, Rank, Source
from ladle.guidance.sources import arrange, grown_source
from ladle.guidance.values import Kind, guides, log_ratio, usable
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family

_ONE_NUMBER = {"explicit": "an explicit value", "ask": "what a question is answered with"}


def rank_of(family: Family, plan: Plan, asked: Mapping[str, Any]) -> Rank:
    """What ``asked``, the complete ``steering.rank``, means for answers that ``plan`` makes.

    - likelihood: sum_t log p(y_t | x, y<t), p the softmax of the plan's combined score before temperature and
      truncation.
    - implicit: sum_i w_i (log pi_i(y | x) - log pi_ref(y | x)), the reward of Free Process Rewards without Process
      Labels (arXiv 2412.01981) with beta = 1, which orders answers as any other beta > 0 does. Values that were
      trained without a reference are log pi_i(y | x), as in GenARM (arXiv 2410.08193).
    - explicit: sum_i w_i V_i(x, y) at the last token of y, as token-level values are read in TVM (arXiv 2407.12863).
    - router: log p(y | x) of the family's router as a language model; where the plan routes, of its own router, with
      what is merged under it. The mean over tokens (``per`` token) selects whole answers of experts as the study of
      routing does. Our reconstruction: FusionRoute (arXiv 2601.05106) selects sequences by a reward model.
    - ask: log p(yes) - log p(no) of the plain base where it is asked a question behind y, as a user's next turn. A
      model that judges answers by a principle is a common idea; the form is ours.
    - vote: how many answers say the same, where a pattern finds what they say (self-consistency, arXiv 2203.11171,
      which votes over the numbers that answers end with); likelihood decides between equal ones, which is ours.

    The w are those with which the family's values guide towards the plan's preference (``ladle.guidance.values``). The
    papers have one objective; the weighed sum is our reconstruction. Values are asked one by one: merging their
    weights keeps less of what they say of whole answers.

    Raises:
        InputError: ``steering.rank...``: the family has no such values or no router, there is no preference to weigh
            them by, the question is empty, or the plan chooses among blocks already.
    """
    by, per, text = asked["by"], asked["per"], ""
    if not isinstance(by, str):
        ((by, text),) = by.items()
    if plan.blocks is not None:
        reason = f"{plan.method} with a block_length chooses by values already"
        raise InputError("steering.rank", dict(asked), reason=reason)
    if per != "answer" and by in _ONE_NUMBER:
        raise InputError("steering.rank.per", per, "answer", f"{_ONE_NUMBER[by]} is one number per answer")
    if by in ("likelihood", "vote"):
        return Rank(by, per, asked["keep"], text=text)
    if by == "ask":
        if not text.strip():
            raise InputError("steering.rank.by.ask", text, "a question that is answered with yes or no")
        return Rank(by, per, asked["keep"], (Source("base", "base", 1.0, ()),), text)
    if by == "router":
        return Rank(by, per, asked["keep"], (_router(family, plan),))
    kind: Kind = by
    state = usable(family, kind)
    if not state.available:
        allowed = f"{', '.join(_possible(family))} ({by}: {state.reason})"
        raise InputError("steering.rank.by", by, allowed)
    if plan.preference is None:
        allowed = f"weights over {', '.join(family.objectives)} (required by rank by {by})"
        raise InputError("steering.preference", None, allowed)
    # Always an ensemble: each value judges the whole answer by itself.
    parts, _ = guides(family, kind, plan.preference, "ensemble", "ensemble")
    judges = log_ratio(parts, 1.0) if kind == "implicit" else [part.source() for part in parts]
    if kind == "explicit":
        return Rank(by, per, asked["keep"], tuple(judges))
    sources = arrange(judges, first_stays=False, trace=False, field="steering.preference")
    return Rank(by, per, asked["keep"], sources)


def _router(family: Family, plan: Plan) -> Source:
    """The router that judges answers of ``plan``. Raises InputError."""
    if plan.routing is not None:
        return replace(plan.sources[plan.routing.source], weight=1.0)
    if family.router is None:
        allowed = f"{', '.join(_possible(family))} (router: the family has no experts with a router)"
        raise InputError("steering.rank.by", "router", allowed)
    return grown_source(family, family.router.name, "router", 1.0, {}, family.router.member)


def _possible(family: Family) -> list[str]:
    """What answers of ``family`` can be ranked by."""
    kinds: tuple[Kind, ...] = ("implicit", "explicit")
    router = [] if family.router is None else ["router"]
    ready = (kind for kind in kinds if usable(family, kind).available)
    return ["likelihood", *ready, *router, '{"ask": a question}', '{"vote": a pattern}']
