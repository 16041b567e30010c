"""``ladle check``: load a family, resolve what its manifest promises, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ladle.guidance.methods.merging_method import MergingMethod
from ladle.guidance.plan import Steering
from ladle.guidance.registry import METHODS, available, check_methods, default_method, resolve
from ladle.merging.checkpoints.base_checkpoint import Progress
from ladle.merging.family.family import Family, load_family
from ladle.merging.family.report import Corner, Report, build_report

if TYPE_CHECKING:
    from ladle.guidance.diagnostics.deep_report import DeepReport


def check_family(
    name_or_path: str | Path, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> Report:
    """Load and verify a family completely. Raises FamilyError at the first thing that is wrong."""
    return report_family(load_family(name_or_path, cache_dir, progress))


def report_family(family: Family) -> Report:
    """Verify a loaded family's default method and presets, and report. Raises FamilyError."""
    check_methods(family)
    methods = available(family)
    corners = []
    # Methods that guide a merged base have the coefficients of the method that merges it.
    merging = [name for name, (ready, _) in methods.items() if ready and isinstance(METHODS[name], MergingMethod)]
    for name in merging:
        # At the corners and the centre: what a linear rule gives in between follows from these.
        for label, preference in _preferences(family):
            plan = resolve(family, Steering(method=name, preference=preference))
            if plan.coefficients is not None:
                corners.append(Corner(name, label, plan.coefficients))
    return build_report(family, default_method(family), methods, corners)


def examine_family(
    family: Family, prompts_file: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> DeepReport:
    """Measure on the family's own models whether its values may be merged, and whether what guides fits its base.

    Args:
        prompts_file: see ``read_prompts``; neutral prompts of ours if None.
        progress: called with (done, total).

    Raises:
        InputError: ``prompts``: what is wrong with them.
        FamilyError: a model cannot be run.
    """
    # Here, so that a plain check does not wait for transformers' models to be imported.
    from ladle.guidance.diagnostics.deep import examine
    from ladle.guidance.diagnostics.probe_prompts import NEUTRAL, read_prompts

    return examine(family, NEUTRAL if prompts_file is None else read_prompts(prompts_file), progress)


def _preferences(family: Family) -> list[tuple[str, dict[str, float]]]:
    """All weight on one objective, each in turn; then the same weight on all."""
    corners = [(objective, {objective: 1.0}) for objective in family.objectives]
    if len(corners) > 1:
        corners.append(("uniform", dict.fromkeys(family.objectives, 1.0)))
    return corners
