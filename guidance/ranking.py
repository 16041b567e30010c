"""What finished answers are judged by: their likelihood, implicit or explicit values of the family."""

from collections.abc import Mapping
from typing import Any

from ladle.guidance.plan import Plan, Rank
from ladle.guidance.sources import arrange
from ladle.guidance.values import Kind, guides, log_ratio, usable
from ladle.merging.errors import InputError
from ladle.merging.family.family import Family


def rank_of(family: Family, plan: Plan, asked: Mapping[str, Any]) -> Rank:
    """What ``asked``, the complete ``steering.rank``, means for answers that ``plan`` makes.

    - likelihood: sum_t log p(y_t | x, y<t), p the softmax of the plan's combined score before temperature and
      truncation.
    - implicit: sum_i w_i (log pi_i(y | x) - log pi_ref(y | x)), the reward of Free Process Rewards without Process
      Labels (arXiv 2412.01981) with beta = 1, which orders answers as any other beta > 0 does. Values that were
      trained without a reference are log pi_i(y | x), as in GenARM (arXiv 2410.08193).
    - explicit: sum_i w_i V_i(x, y) at the last token of y, as token-level values are read in TVM (arXiv 2407.12863).

    The w are those with which the family's values guide towards the plan's preference (``ladle.guidance.values``). The
    papers have one objective; the weighed sum is our reconstruction. Values are asked one by one: merging their
    weights keeps less of what they say of whole answers.

    Raises:
        InputError: ``steering.rank...``: the family has no such values, there is no preference to weigh them by, or
            the plan chooses among blocks already.
    """
    by, per = asked["by"], asked["per"]
    if plan.blocks is not None:
        reason = f"{plan.method} with a block_length chooses by values already"
        raise InputError("steering.rank", dict(asked), reason=reason)
    if by == "likelihood":
        return Rank(by, per, asked["keep"])
    kind: Kind = by
    state = usable(family, kind)
    if not state.available:
        allowed = f"{', '.join(_possible(family))} ({by}: {state.reason})"
        raise InputError("steering.rank.by", by, allowed)
    if plan.preference is None:
        allowed = f"weights over {', '.join(family.objectives)} (required by rank by {by})"
        raise InputError("steering.preference", None, allowed)
    if by == "explicit" and per != "answer":
        raise InputError("steering.rank.per", per, "answer, because an explicit value is one number per answer")
    parts, _ = guides(family, kind, plan.preference, "ensemble", "ensemble")
    judges = log_ratio(parts, 1.0) if kind == "implicit" else [part.source() for part in parts]
    if kind == "explicit":
        return Rank(by, per, asked["keep"], tuple(judges))
    sources = arrange(judges, first_stays=False, trace=False, field="steering.preference")
    return Rank(by, per, asked["keep"], sources)


def _possible(family: Family) -> list[str]:
    """What answers of ``family`` can be ranked by."""
    kinds: tuple[Kind, ...] = ("implicit", "explicit")
    return ["likelihood", *(kind for kind in kinds if usable(family, kind).available)]
