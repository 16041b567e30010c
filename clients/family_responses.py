"""What a server says of the families that it serves."""

from typing import Any

from pydantic import Field

from ladle.clients.responses import Response


class MethodStatus(Response):
    """Whether a family can serve a method, and if not, why; what a request may say to it.

    Attributes:
        preference: ``required``, ``optional`` or ``ignored``.
        options: the fields of ``steering`` it understands besides method, preference and trace.
        needs: those of them it cannot do without.
        strength: the default of that option; None where the method has none.
    """

    available: bool
    reason: str | None = None
    preference: str | None = None
    options: list[str] = Field(default_factory=list)
    needs: list[str] = Field(default_factory=list)
    strength: float | None = None


class Member(Response):
    """One fine-tuned member of a family.

    Attributes:
        kind: ``backbone``, ``policy``, ``value``, ``expert``, ``router`` or ``vector``.
        rank: of its low-rank factors; None for full checkpoints and vectors.
        objective: the one objective that it was trained for, if it was one.
        rewards: else the weights it was trained for, in the order of the family's objectives.
    """

    name: str
    kind: str
    rank: int | None = None
    parameters: int | None = None
    objective: str | None = None
    rewards: list[float] | None = None


class Calibration(Response):
    """What targets are possible.

    Attributes:
        steering: the method and the options that it holds for.
        answers: how many it was measured on.
        reachable: by objective, the quantiles of their rewards that can be asked for, from least to greatest.
    """

    steering: dict[str, Any]
    answers: int
    reachable: dict[str, tuple[float, float]]


class ThinkingTags(Response):
    """What tells thoughts from answers, and what ends them where a request does not say.

    Attributes:
        open, close: the tags around the thought in front of an answer.
        budgets: the most tokens of a thought by reasoning effort.
        verifier: what else may end one: ``every``, ``ask``, ``above``; None where nothing does.
    """

    open: str
    close: str
    budgets: dict[str, int] = Field(default_factory=dict)
    verifier: dict[str, Any] | None = None


class Family(Response):
    """What a server serves.

    Attributes:
        matrix: row j holds the reward weights of backbone j.
        sampling: how answers are drawn where a request does not say.
        calibration: None for a family that takes no targets.
        thinking: None where thoughts cannot be told from answers.
        monitors: what watches every answer, whatever a request says.
    """

    name: str
    objectives: list[str]
    default_method: str | None = None
    matrix: list[list[float]] | None = None
    methods: dict[str, MethodStatus] = Field(default_factory=dict)
    members: list[Member] = Field(default_factory=list)
    sampling: dict[str, Any] = Field(default_factory=dict)
    presets: dict[str, Any] = Field(default_factory=dict)
    calibration: Calibration | None = None
    thinking: ThinkingTags | None = None
    monitors: list[dict[str, Any]] = Field(default_factory=list)


class Model(Response):
    """An entry of ``/v1/models``."""

    id: str
    object: str = "model"
    created: int | None = None
    owned_by: str | None = None
