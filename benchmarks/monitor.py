"""What watching costs: a decode step whose answers have a value asked about every token against one without,
interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ladle.benchmarks.engine_side import EngineSide
from ladle.benchmarks.paired import over_plain
from ladle.guidance.plan import Steering
from ladle.merging.family.family import Family
from ladle.merging.family.manifest_tables import HEADED

BURST = 12
NEVER = 1e9
METHODS = ("base", "bone_soup")


def run(family: Family, dtype: str, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """A row a method and a batch size, all of whose sequences are watched or none is: milliseconds per step, and the
    ratio, paired by round. Raises ValueError for a family without an explicit value."""
    value = next((value.name for value in family.values if value.kind == "explicit"), None)
    if value is None:
        known = ", ".join(value.name for value in family.values if value.kind in HEADED) or "no value with a head"
        raise ValueError(f"family: an explicit value is needed; it has {known}")
    side = EngineSide(family, dtype)
    even = dict.fromkeys(family.objectives, 1.0)
    for method in METHODS:
        plain = Steering(method=method, preference=even)
        watched = Steering(
            method=method, preference=even, monitor={"value": value, "ask": None, "above": NEVER, "for": 1, "hold": 8}
        )
        for batch in batches:
            sides: dict[str, Callable[[], Iterator[float]]] = {
                "plain": lambda batch=batch, own=plain: side.burst(batch, BURST, lambda row: own),  # type: ignore[misc]
                "watched": lambda batch=batch, own=watched: side.burst(batch, BURST, lambda row: own),  # type: ignore[misc]
            }
            yield {"method": method, "batch": batch, "dtype": dtype, **over_plain(sides, rounds)}
