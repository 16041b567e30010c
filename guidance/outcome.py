"""What a target is expected to come to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What is expected of one objective at the preference that was found.

    Attributes:
        wanted: the quantile that was asked for; None where the objective was left free.
        quantile: the expected one, with ``low`` and ``high``, two standard errors of the fit around it.
        reward: the expected mean reward.
    """

    wanted: float | None
    quantile: float
    low: float
    high: float
    reward: float
