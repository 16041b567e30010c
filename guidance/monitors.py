"""What watches an answer while it is written: the family's monitors, which always do, and the one a request adds."""

from collections.abc import Mapping
from typing import Any

from ladle.guidance.plan import Monitor, Plan, PromptView
from ladle.guidance.values import watching
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, ValueMember
from ladle.merging.family.manifest_tables import HEADED, MonitorTable


def monitors_of(family: Family, plan: Plan, asked: Mapping[str, Any] | None) -> tuple[Monitor, ...]:
    """The monitors of answers that ``plan`` makes.

    A Streaming Content Monitor (arXiv 2506.09996) ends an answer once k tokens in all are flagged, by a small model of
    its own beside the stream; asking the model itself about its answer so far is Progressive Self-Reflection's. Tokens
    in a row, what is held back, and that a value of the family is asked in the trunk's own forward, are ours.

    Args:
        asked: the complete ``steering.monitor``. One that names the value, or asks the question, of one of the family's
            monitors makes that one stricter; any other one is one more.

    Raises:
        InputError: ``steering.monitor...``: an unknown value, no bound, or one that would make a monitor of the family
            less strict; ``steering.block_length`` beside any monitor.
    """
    monitors = list(family_monitors(family))
    if asked is not None:
        # The same value or question as one of the family's: that one made stricter, not a second one beside it.
        index = next((i for i, entry in enumerate(family.manifest.monitors) if _same(entry, asked)), None)
        if index is None:
            monitors.append(_monitor(family, asked["value"] or "ask", asked))
        else:
            entry = family.manifest.monitors[index]
            _require_stricter(entry, asked)
            given = {key: value for key, value in asked.items() if value is not None}
            monitors[index] = _monitor(family, entry.name, {**entry.stated(), **given})
    if monitors and plan.blocks is not None:
        reason = f"monitor {monitors[0].name} judges every token as it comes, and here whole blocks are chosen"
        raise InputError("steering.block_length", plan.blocks.length, reason=reason)
    return tuple(monitors)


def _same(entry: MonitorTable, asked: Mapping[str, Any]) -> bool:
    return (entry.value, entry.ask) == (asked["value"], asked["ask"])


def _require_stricter(entry: MonitorTable, asked: Mapping[str, Any]) -> None:
    """Raise InputError where ``asked`` would let more pass than the family's own monitor does."""
    stated = entry.stated()
    for key, words, looser in (
        ("above", "at most", lambda given, own: given > own),
        ("for", "at most", lambda given, own: given > own),
        ("hold", "at least", lambda given, own: given < own),
    ):
        if asked[key] is not None and looser(asked[key], stated[key]):
            reason = f"monitor {entry.name} of the family holds for every request, which may only make it stricter"
            raise InputError(f"steering.monitor.{key}", asked[key], f"{words} {stated[key]:g}", reason)


def family_monitors(family: Family) -> tuple[Monitor, ...]:
    """The monitors of the manifest, which watch every answer. Raises InputError: see ``monitors_of``."""
    return tuple(_monitor(family, entry.name, entry.stated()) for entry in family.manifest.monitors)


def _monitor(family: Family, name: str, stated: Mapping[str, Any]) -> Monitor:
    if stated["above"] is None:
        raise InputError("steering.monitor.above", None, "a number, above which what is judged counts as bad")
    # As many parts are held back by default as have to be bad in a row: what a trip takes back has then not been shown.
    run = stated["for"] or 1
    hold = stated["hold"] or run
    if stated["ask"] is not None:
        if not stated["ask"].strip():
            raise InputError("steering.monitor.ask", stated["ask"], "a question that is answered with yes or no")
        _require_probability("steering.monitor.above", stated["above"], "the probability of yes")
        question = PromptView("question", stated["ask"], "steering.monitor.ask")
        return Monitor(name, stated["above"], run, hold, question=question)
    values: dict[str, ValueMember] = {value.name: value for value in family.values if value.kind in HEADED}
    if stated["value"] not in values:
        reason = None if values else "the family has no explicit values"
        raise InputError("steering.monitor.value", stated["value"], ", ".join(values), reason)
    value = values[stated["value"]]
    probability = value.kind == "monitor"
    if probability:
        _require_probability("steering.monitor.above", stated["above"], f"value {value.name} is a probability")
    return Monitor(name, stated["above"], run, hold, watching(value), probability)


def _require_probability(field: str, above: float, what: str) -> None:
    if not 0 <= above < 1:
        raise InputError(field, above, f"a number from 0 to below 1 ({what})")
