"""What one round of draws gave: tokens, values of whole texts, and what else the step found out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ladle.guidance.plan import Source
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.schedule.catch_up import CatchUp
from ladle.server.engine.scores.sampler import Draw


@dataclass
class StepResult:
    """What one step gave.

    Attributes:
        draws: the token of each sequence that got one.
        values: of each sequence that only asked for values, by source.
        kept: the sequences whose value lanes have the state of the drawn token already.
        caught_up: what experts computed that had missed something, and which sequences get no token because of it.
    """

    draws: dict[Sequence, Draw] = field(default_factory=dict)
    values: dict[Sequence, dict[Source, float]] = field(default_factory=dict)
    kept: set[Sequence] = field(default_factory=set)
    caught_up: CatchUp = field(default_factory=CatchUp)

    def worth(self, sequence: Sequence) -> float | None:
        """sum_s weight_s V_s of the text of a sequence that only asked for values, NaN where one is; None of others."""
        values = self.values.get(sequence)
        return None if values is None else math.fsum(source.weight * value for source, value in values.items())
