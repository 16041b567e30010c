"""The tables of ``family.toml``, each by itself; how they relate is ``ladle.merging.family.manifest``'s to say."""

import types
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, create_model, model_validator

from ladle.steering_options import MAX_HELD, OPTIONS

Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(Table):
    """``[base]``.

    Attributes:
        model: a folder, ``pypi:DISTRIBUTION`` (a GGUF inside an installed wheel) or a hub id, which may have an
            ``@REVISION``.
    """

    model: str = Field(min_length=1)


class Soup(Table):
    """``[soup]``: the backbone-reward matrix B, by ``beta`` or as ``matrix``, not both.

    Attributes:
        beta: the weight of a backbone's own objective in its mix of rewards.
        matrix: B, [n, n], a row per backbone.
        extrapolation: k_i > 0, by objective.
    """

    beta: Finite | None = None
    matrix: list[list[Finite]] | None = None
    extrapolation: dict[str, Annotated[Finite, Field(gt=0)]] = {}

    @model_validator(mode="after")
    def _not_both(self) -> "Soup":
        if self.beta is not None and self.matrix is not None:
            raise ValueError("give beta or matrix, not both")
        return self


class MemberTable(Table):
    """What every member has: a name and where its LoRA folder or full checkpoint lies: a path relative to the manifest,
    an absolute one, one with ``~``, or a hub id, ``ORG/NAME`` or ``ORG/NAME@REVISION``."""

    name: str
    path: str = Field(min_length=1)


class Backbone(MemberTable):
    """``[[backbones]]``: a policy trained on a mix of rewards; ``rewards`` is its row of B."""

    rewards: list[Finite] | None = None


class Policy(MemberTable):
    """``[[policies]]``: a policy trained on one objective alone, of which Rewarded Soup mixes one per objective; or one
    trained for one preference, ``rewards``, by weights in the order of the objectives: what a merged model for that
    preference can be measured against."""

    objective: str | None = None
    rewards: list[Finite] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Policy":
        if (self.objective is None) == (self.rewards is None):
            raise ValueError("give objective or rewards, one of them")
        return self


class ModelTable(Table):
    """``[[models]]``: a further language model that shares the base's tokenizer, of any size.

    Attributes:
        name: by which members, values and the router name it.
        model: where it lies, as in ``[base]``.
        tokenizer: ``base`` for one that has no tokenizer of its own because its tokens are the base's; None for one
            whose tokenizer is compared with the base's.
        amateur: what contrastive decoding contrasts the base with.
    """

    name: str
    model: str = Field(min_length=1)
    tokenizer: Literal["base"] | None = None
    amateur: StrictBool = False


class SpeculationTable(Table):
    """``[speculation]``: what guesses tokens where the operator asks for it (``ladle serve --speculate model:4``).

    Attributes:
        model: an entry of ``[[models]]``, the draft model.
        window: tokens of a text, the last ones, that it looks at, at most; None leaves that to the server.
    """

    model: str = Field(min_length=1)
    window: Annotated[StrictInt, Field(ge=16, le=1 << 16)] | None = None


HEADED = ("explicit", "monitor")
"""Kinds of values that are a trunk with a scalar head."""


class Value(MemberTable):
    """``[[values]]``: implicit (a tuned language model) or explicit (a trunk with a scalar head), of which one that was
    trained as a monitor guides nothing: its head gives the logit of the probability that a text goes wrong.

    Attributes:
        kind: ``implicit``, ``explicit`` or ``monitor``.
        objective: what it was trained on; an implicit value without it and ``rewards`` takes the whole preference
            (PBLoRA).
        rewards: the mix that it was trained on: its row of a backbone-reward matrix.
        objectives: the rows of a PBLoRA, where they are not the family's objectives in order.
        base: the entry of ``[[models]]`` that it was grown from; None for the family's base.
        reference: whether an implicit value's score is taken against the model that it was grown from; yes unless said
            otherwise or a PBLoRA.
        system: its own system message.
        anti: a member of the same model that speaks against the objective.
    """

    kind: Literal["implicit", "explicit", "monitor"]
    objective: str | None = None
    rewards: list[Finite] | None = None
    objectives: list[str] | None = None
    base: str | None = None
    reference: StrictBool | None = None
    system: str | None = None
    anti: str | None = None

    @property
    def conditioned(self) -> bool:
        """Whether it takes the whole preference."""
        return self.objective is None and self.rewards is None and self.kind != "monitor"


class MonitorTable(Table):
    """``[[monitors]]``: what ends answers of this family while they are written, whatever a request says; it may only
    make one stricter.

    Attributes:
        name: of the monitor.
        value: the explicit value, or the one of kind ``monitor``, that is asked about every token.
        ask: in place of it, a question that the base answers with yes or no after every sentence.
        above: the bound; of a question and a value of kind ``monitor`` a probability.
        run: ``for``, how many tokens or sentences in a row must be above it.
        hold: how many of the last ones judged are never shown; as many as ``for`` unless said otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=False, validate_by_alias=True)

    name: str
    value: str | None = None
    ask: Annotated[str, Field(min_length=1)] | None = None
    above: Finite
    run: Annotated[StrictInt, Field(ge=1, le=MAX_HELD, alias="for")] = 1
    hold: Annotated[StrictInt, Field(ge=1, le=MAX_HELD)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "MonitorTable":
        if (self.value is None) == (self.ask is None):
            raise ValueError("give value or ask, one of them")
        return self

    def stated(self) -> dict[str, Any]:
        """What it says, as a request would say it."""
        hold = self.run if self.hold is None else self.hold
        return {"value": self.value, "ask": self.ask, "above": self.above, "for": self.run, "hold": hold}


class Expert(MemberTable):
    """``[[experts]]``: a language model that is good at something; a router chooses among them at every token.

    Attributes:
        path: as of every member; without one the expert is the model ``base`` as it is.
        base: the entry of ``[[models]]`` it was grown from; None for the family's base.
    """

    path: str = ""
    base: str | None = None


class Router(MemberTable):
    """``[router]``: a language model and, beside its weights, a linear head with one row an expert, in the order of
    ``[[experts]]``. ``base``: as of an expert. A folder with the head alone is that model as it is."""

    name: str = "router"
    base: str | None = None


class Vector(MemberTable):
    """``[[vectors]]``: a steering vector of the base: a ``.safetensors`` file with one tensor ``[layers, hidden]``, a
    folder with a ``steering_vector.safetensors``, or a control vector in GGUF. It lies on this machine: ``path`` names
    no repository of the hub."""


class Sampling(Table):
    """How answers are drawn where a request does not say, with the names and bounds of a request's own fields."""

    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None

    def given(self) -> dict[str, float]:
        """The fields that are set, by name."""
        return {name: value for name in Sampling.model_fields if (value := getattr(self, name)) is not None}


def _stated(kind: Any) -> Any:
    """The type of an option as TOML states it: numbers are finite, and neither text nor a flag is taken for one."""
    origin: Any = get_origin(kind)
    parts = tuple(map(_stated, get_args(kind)))
    if origin is types.UnionType:
        return reduce(or_, parts)
    return origin[parts] if parts else {float: Finite, int: StrictInt, bool: StrictBool}.get(kind, kind)


_PRESET_FIELDS: dict[str, Any] = {
    "sampling": (Sampling | None, None),
    **{name: (_stated(option.kind.type) | None, None) for name, option in OPTIONS.items() if option.preset},
}
_PRESET: Any = create_model("_PRESET", __base__=Table, **_PRESET_FIELDS)


EFFORTS = ("minimal", "low", "medium", "high", "xhigh")
"""What ``reasoning_effort`` may say, but for ``none``, which is a budget of 0."""


class VerifierTable(Table):
    """``[thinking.verifier]``: what may end a thought that holds the answer already, where a request does not say. What
    it leaves out is the server's.

    Attributes:
        every: after so many tokens the base is asked.
        ask: the question.
        above: the probability of yes that has to be exceeded.
    """

    every: Annotated[StrictInt, Field(ge=1, le=1 << 20)] | None = None
    ask: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    above: Annotated[Finite, Field(ge=0, lt=1)] | None = None


class ThinkingTable(Table):
    """``[thinking]``.

    Attributes:
        open, close: the tags around the thought in front of an answer, where these are others than ``<think>`` and
            ``</think>`` or the chat template does not name them.
        budgets: most tokens of a thought by reasoning effort.
        verifier: what else may end it.
    """

    open: Annotated[str, Field(min_length=1)] | None = None
    close: Annotated[str, Field(min_length=1)] | None = None
    budgets: dict[Literal["minimal", "low", "medium", "high", "xhigh"], Annotated[StrictInt, Field(ge=0)]] = {}
    verifier: VerifierTable | None = None

    @model_validator(mode="after")
    def _two_tags(self) -> "ThinkingTable":
        if (self.open is None) != (self.close is None) or (self.open is not None and self.open == self.close):
            raise ValueError("open and close are two tags; give both or neither")
        return self


class Preset(_PRESET):
    """``[presets.NAME]``: steering options (``ladle.steering_options``) under a name that clients may send as
    ``model``; ``sampling``: how its answers are drawn where a request does not say, before what the family says."""

    def steering(self) -> dict[str, Any]:
        """The steering options that are set, as a request would send them."""
        stated: dict[str, Any] = self.model_dump(exclude_none=True, exclude={"sampling"})
        return stated
