"""``ladle check``: load a family, resolve what its manifest promises, report."""

from pathlib import Path

from ladle.guidance.plan import Steering
from ladle.guidance.registry import METHODS, available, check_methods, default_method, resolve
from ladle.merging.base import Progress
from ladle.merging.family import Family, load_family
from ladle.merging.report import Corner, Report, build_report


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
    for name, (ready, _) in methods.items():
        for label, preference in _preferences(family) if ready and METHODS[name].takes_preference else ():
            plan = resolve(family, Steering(method=name, preference=preference))
            if plan.coefficients is not None:
                corners.append(Corner(name, label, plan.coefficients))
    return build_report(family, default_method(family), methods, corners)


def _preferences(family: Family) -> list[tuple[str, dict[str, float]]]:
    """All weight on one objective, each in turn; then the same weight on all."""
    corners = [(objective, {objective: 1.0}) for objective in family.objectives]
    if len(corners) > 1:
        corners.append(("uniform", dict.fromkeys(family.objectives, 1.0)))
    return corners
