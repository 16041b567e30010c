"""A decode step with another coefficient of a steering vector in every row, against a plain one; interleaved.

Both sides run on one engine, whose family has one random vector, so that what is compared is what its rows ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ladle.benchmarks.engine_side import EngineSide
from ladle.benchmarks.paired import over_plain
from ladle.guidance.plan import Steering
from ladle.merging.family.family import Family
from ladle.merging.members.steering_vector import SteeringVector

BURST = 6
NAME = "random-vector"


def with_vector(family: Family) -> Family:
    """``family`` with one random vector besides its members, as long as a hundredth of a hidden state."""
    base = family.models[""]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(base.architecture.layers, base.architecture.hidden, generator=generator) / 100
    vector = SteeringVector(NAME, Path(NAME), directions, directions.nbytes)
    return replace(family, models={**family.models, "": replace(base, vectors={**base.vectors, NAME: vector})})


def run(family: Family, dtype: str, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """One row a batch size: median milliseconds of both, and their ratio round by round with its quartiles."""
    ladle = EngineSide(with_vector(family), dtype)
    base = Steering(method="base")

    def amounts(row: int) -> Steering:
        return Steering(method="rewarded_soup", coefficients={NAME: (row + 1) / 16})

    for batch in batches:
        sides: dict[str, Callable[[], Iterable[float]]] = {
            "plain": lambda batch=batch: ladle.burst(batch, BURST, lambda row: base),  # type: ignore[misc]
            "vectors": lambda batch=batch: ladle.burst(batch, BURST, amounts),  # type: ignore[misc]
        }
        yield {"batch": batch, "dtype": dtype, **over_plain(sides, rounds)}
