"""All diagnostics of a family, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ladle.guidance.diagnostics.barrier import Pair
from ladle.guidance.diagnostics.comparison import Comparison
from ladle.guidance.diagnostics.compatibility import Fit
from ladle.guidance.diagnostics.deep_report import DeepReport
from ladle.guidance.diagnostics.forwards import Forwards
from ladle.guidance.diagnostics.groups import find_groups
from ladle.guidance.diagnostics.probe_prompts import NEUTRAL
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import Preference

LENGTH = 24
"""Tokens of an answer, at most."""


def examine(
    family: Family,
    prompts: Sequence[str] = NEUTRAL,
    progress: Callable[[int, int], None] | None = None,
    length: int = LENGTH,
) -> DeepReport:
    """Measure merged against ensembled values, barriers, and how guides fit their base (see the modules of these names)
    on the base's greedy answers to ``prompts``.

    Args:
        progress: called with (done, total) texts read.
        length: tokens of an answer, at most.

    Raises:
        InputError: ``prompts[i]``: a prompt that the models cannot read.
        FamilyError: a model cannot be run, or gives NaN or infinity.
    """
    groups, skipped = find_groups(family)
    comparisons: list[Comparison] = []
    pairs: list[Pair] = []
    fits: list[Fit] = []
    # What each group can be asked is collected first, with reasons for what cannot: the forwards that several checks
    # need are then run once.
    for group in groups:
        compared = []
        for words, preference in _inner(family):
            comparison = Comparison.of(group, preference, words)
            compared += [] if comparison is None else [comparison]
        if not compared:
            skipped.append(f"{group.name}: merged against ensembled: {_why(family, group.parts is None)}")
        comparisons += compared
        between, refused = Pair.all(group)
        pairs += between
        skipped += refused
        if group.explicit:
            skipped.append(f"{group.name}: base and guide: values score the base's own candidates")
            continue
        for words, preference in _corners(family):
            try:
                fits.append(Fit.of(family, group, preference, words))
            except InputError as error:
                skipped.append(f"{group.name}: base and guide at {words}: {error}")
    # Together, so that what several of them need is computed once and while it is remembered.
    checks: list[Comparison | Pair | Fit] = [*comparisons, *pairs, *fits]
    states = [state for check in checks for state in check.states()]
    if not states:
        return DeepReport(len(prompts), 0, (), (), (), tuple(skipped))
    total = len(prompts) * (len(set(states)) + 1)
    if progress:
        progress(0, total)
    forwards = Forwards(family, prompts, length)
    done = len(prompts)

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    if progress:
        progress(done, total)
    forwards.on_forward = advance
    return DeepReport(
        len(prompts),
        len(forwards.answer),
        tuple(check.measure(forwards, family) for check in comparisons),
        tuple(pair.measure(forwards, family) for pair in pairs),
        tuple(fit.measure(forwards) for fit in fits),
        tuple(skipped),
    )


def _corners(family: Family) -> list[tuple[str, Preference]]:
    """All weight on one objective, each in turn; then the same on all."""
    wanted = [(objective, {objective: 1.0}) for objective in family.objectives]
    if len(wanted) > 1:
        wanted.append(("uniform", dict.fromkeys(family.objectives, 1.0)))
    return [(words, Preference.of(weights, family.objectives)) for words, weights in wanted]


def _inner(family: Family) -> list[tuple[str, Preference]]:
    """Preferences that weigh all objectives: uniform, and three quarters on the first."""
    first, *others = family.objectives
    if not others:
        return []
    skewed = {first: 0.75} | dict.fromkeys(others, 0.25 / len(others))
    wanted = (("uniform", dict.fromkeys(family.objectives, 1.0)), (f"{first}=0.75", skewed))
    return [(words, Preference.of(weights, family.objectives)) for words, weights in wanted]


def _why(family: Family, conditioned: bool) -> str:
    if conditioned:
        return "one model takes the whole preference"
    return "a single objective" if len(family.objectives) < 2 else "they cannot be merged, or one stands for all"
