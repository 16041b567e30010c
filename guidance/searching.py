"""What is kept of several continuations, block by block: by their likelihood, implicit or explicit values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ladle.guidance.plan import Blocks, Plan
from ladle.guidance.ranking import rank_of
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family

LONGEST = 64
"""Tokens of a block that ends with a sentence, at most; our choice."""


def searched(family: Family, plan: Plan, asked: Mapping[str, Any]) -> Plan:
    """``plan`` in blocks, as ``asked``, the complete ``steering.search``, says.

    Explicit values at the ends of blocks are blockwise controlled decoding (arXiv 2310.17022), which knows no beam;
    ReST-MCTS* (arXiv 2406.03816) and TVM (arXiv 2407.12863) search with values of partial answers. Likelihood, ends of
    sentences and draws by entropy are Cautious Next Token Prediction (arXiv 2507.03038, and the authors' code for how
    many draws). That any method may write, the beam over blocks, implicit values, and the scores of texts with
    different numbers of blocks are our reconstruction. What judges are the sources that ``rank`` has.

    Raises:
        InputError: ``steering.search...``: it chooses by blocks already, ranks whole answers or is watched, or the
            family has no such values; ``steering.preference``: there is none to weigh them by.
    """
    if plan.blocks is not None:
        reason = f"{plan.method} with a block_length chooses among blocks already"
        raise InputError("steering.search", dict(asked), reason=reason)
    assert plan.steering is not None, "it was resolved"
    if plan.steering.rank is not None:
        reason = "it cannot stand beside rank: its answer is the best one that it found; more draws find better ones"
        raise InputError("steering.search", dict(asked), reason=reason)
    if plan.monitors:
        reason = f"monitor {plan.monitors[0].name} judges every token as it comes, and here whole blocks are chosen"
        raise InputError("steering.search", dict(asked), reason=reason)
    by, until, draws = asked["by"], asked["until"], asked["draws"]
    try:
        # The judges are those of a ranking; its errors are told as the search's own.
        judges = rank_of(family, plan, {"by": by, "per": "answer", "keep": 1}).sources
    except InputError as error:
        if error.field == "steering.preference":
            allowed = f"weights over {', '.join(family.objectives)} (required by search by {by})"
            raise InputError(error.field, None, allowed) from None
        raise error.at(error.field.replace("steering.rank", "steering.search")) from None
    blocks = Blocks(
        draws if isinstance(draws, int) else draws["most"],
        LONGEST if isinstance(until, str) else until,
        ends=until if isinstance(until, str) else None,  # type: ignore[arg-type]
        entropy=None if isinstance(draws, int) else (draws["entropy"][0], draws["entropy"][1]),
        beam=asked["beam"],
        by=by,
        sources=judges,
        option="search",
    )
    return replace(plan, blocks=blocks)
