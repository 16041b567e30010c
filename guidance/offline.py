"""``ladle merge``: what a request would be served with, as a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import torch

from ladle.guidance.plan import Plan, Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.merges.export import export


def merge_offline(
    family: Family,
    steering: Steering,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 2_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Resolve ``steering`` and write the weights of its first source to ``out`` (see ``export``).

    Returns:
        The plan, whose coefficients and warnings say what was written.

    Raises:
        InputError: as for a request; or the method is more than one set of weights.
        FamilyError: the merge gives NaN or infinity.
    """
    plan = resolve(family, steering)
    active = [source for source in plan.sources if source.weight != 0.0]
    alone = len(active) == 1 and not (active[0].model or active[0].view or plan.mask or plan.scorer or plan.routing)
    if plan.schedule:
        raise InputError("steering.schedule", steering.schedule, reason="a checkpoint is one set of weights")
    if not alone:
        raise InputError("steering.method", plan.method, "a method whose effect is one set of weights")
    provenance = {
        "method": plan.method,
        "preference": plan.preference.as_dict() if plan.preference is not None else None,
        "warnings": list(plan.warnings),
    }
    export(
        family,
        dict(active[0].coefficients),
        out,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
        progress=progress,
    )
    return plan
