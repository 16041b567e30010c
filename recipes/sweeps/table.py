"""The table of a sweep that must be of a certain family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.merging.family.manifest import Manifest
from ladle.recipes.sweeps.store import reopen
from ladle.recipes.sweeps.summary import RewardTable


def table_of(sweep: Path, manifest: Manifest) -> tuple[RewardTable, dict[str, Any]]:
    """The rewards of a sweep of the family, and what it asked for. Raises ValueError: there is none, or of another."""
    store, asked, settings = reopen(sweep)
    if asked["family"] != manifest.name or asked["objectives"] != manifest.objectives:
        description = f"it is of {asked['family']!r} with objectives {', '.join(asked['objectives'])}"
        allowed = f"a sweep of {manifest.name!r} with {', '.join(manifest.objectives)}"
        raise ValueError(f"sweep: {str(sweep)!r} is not allowed, {description}; allowed: {allowed}")
    return RewardTable(settings, store.samples, manifest.objectives), asked
