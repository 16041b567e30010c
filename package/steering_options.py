"""The options of ``steering``, a row each: name, type, check and text, from which every place that lists them follows.

A new option is a field of ``SteeringOptions``, and the code that acts on it. From its row follow the checks of a
request, the JSON schema of ``steering`` in the OpenAPI document, what presets of a manifest may hold, the controls of
the playground, the command line's help and completion, and what the SDK passes on. Nothing but the standard library is
imported here, so that all rooms may read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ladle.option_kinds import (
    ChoiceOrText,
    Count,
    Either,
    Flag,
    Interval,
    Kind,
    Number,
    NumberOrEach,
    Objects,
    OneOf,
    Record,
    Text,
    Weights,
)

Normalize = Literal["none", "sum", "norm"]
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd", "alpha")
VALUES = ("implicit", "explicit", "both")
BASES = ("bone_soup", "fitted_soup")
COMBINE = ("merged", "ensemble")
RANKINGS = ChoiceOrText(
    ("likelihood", "implicit", "explicit", "router"),
    {"ask": Text("a question that is answered with yes or no"), "vote": Text("a pattern")},
)
SPANS = ("answer", "token")
SEARCHED = ("likelihood", "implicit", "explicit")
ENDS = ("sentence", "punctuation")
MAX_STRENGTH = 100.0
MAX_BLOCK_LENGTH = 512
MAX_CANDIDATES = 1024  # every candidate is one more position to compute a token
MAX_ALPHA = 100.0
MAX_STAY = 65536
MAX_BUDGET = 100.0
MAX_PARTS = 256
MAX_HELD = 512
MAX_VALUE = 1e9
MAX_DRAWS = 64
MAX_BEAM = 16
MAX_ENTROPY = 20.0


@dataclass(frozen=True)
class Option:
    """One row of the table.

    Attributes:
        name: its key in ``steering``.
        kind: what its value may be.
        text: what it does, in a sentence: the description in the OpenAPI document, the hint in the playground.
        default: the value where a request states none.
        label: of the control that the playground makes of it; empty for options that have a control of their own there,
            or none.
        universal: every method takes it; the others are taken by the methods that name them.
        aim: it says towards what an answer is steered; a new aim takes the place of the old one, of whatever kind.
        whole: it holds for the whole answer: neither a part of a schedule nor a change on the way may state it.
        preset: a preset of a manifest may state it.
    """

    name: str
    kind: Kind
    text: str
    default: Any = None
    label: str = ""
    universal: bool = False
    aim: bool = False
    whole: bool = False
    preset: bool = True


def _row(kind: Kind, text: str, **more: Any) -> dict[str, Any]:
    """A row as a field of ``SteeringOptions`` holds it."""
    return {"kind": kind, "text": text, **more}


@dataclass(frozen=True)
class SteeringOptions:
    """The table. A field that is None is the default of the method, or of the family."""

    method: str | None = field(
        default=None,
        metadata=_row(
            Text("the name of a method"), "How to steer; without one, as the family prefers.", universal=True
        ),
    )
    preference: Mapping[str, float] | None = field(
        default=None,
        metadata=_row(
            Weights("an object of weights by objective", least=0),
            "Weights by objective; they are normalised to sum 1.",
            universal=True,
            aim=True,
        ),
    )
    strength: float | Mapping[str, float] | None = field(
        default=None,
        metadata=_row(
            NumberOrEach(Number(-MAX_STRENGTH, MAX_STRENGTH), ("implicit", "explicit")),
            "Scales what the method adds to the base; with value both it may be an object with a number for each.",
        ),
    )
    target: Mapping[str, float] | None = field(
        default=None,
        metadata=_row(
            Weights("an object of quantiles by objective", least=0, most=1),
            "The reward that is wanted, as a quantile by objective, instead of a preference; for a calibrated family.",
            universal=True,
            aim=True,
        ),
    )
    value: str | None = field(default=None, metadata=_row(OneOf(VALUES), "Which kind of value guides.", label="Value"))
    base: str | None = field(
        default=None,
        metadata=_row(OneOf(BASES), "How the base that is guided is merged for the preference.", label="Base"),
    )
    combine: str | None = field(
        default=None,
        metadata=_row(
            OneOf(COMBINE),
            "Whether the weights of several guides are merged, or their scores added up.",
            label="Combine",
        ),
    )
    candidates: int | None = field(
        default=None,
        metadata=_row(Count(MAX_CANDIDATES), "How many of the best tokens get a value.", label="Candidates"),
    )
    block_length: int | None = field(
        default=None,
        metadata=_row(
            Count(MAX_BLOCK_LENGTH),
            "Whole blocks of so many tokens are drawn and valued, instead of single tokens.",
            label="Block length",
        ),
    )
    negative_prompt: str | None = field(
        default=None, metadata=_row(Text(), "A system message to move away from.", label="Negative prompt")
    )
    divergence: str | None = field(
        default=None,
        metadata=_row(OneOf(DIVERGENCES), "The divergence that the policies were tuned with.", label="Divergence"),
    )
    alpha: float | None = field(
        default=None,
        metadata=_row(Number(0, MAX_ALPHA, open=True), "The parameter of divergence alpha.", label="Alpha"),
    )
    complement: float | None = field(
        default=None,
        metadata=_row(
            Number(0, MAX_STRENGTH),
            "The weight of the router's own scores; 0 only routes.",
            label="Router's share",
        ),
    )
    expert_weight: float | None = field(
        default=None,
        metadata=_row(
            Number(0, MAX_STRENGTH, open=True), "The weight of the expert's scores.", label="Expert's weight"
        ),
    )
    top_experts: int | None = field(
        default=None,
        metadata=_row(
            Count(words="the number of experts"),
            "How many experts speak at once, as a mixture of their distributions.",
            label="Experts at once",
        ),
    )
    min_stay: int | None = field(
        default=None,
        metadata=_row(
            Count(MAX_STAY),
            "How many tokens an expert writes before another one may take over.",
            label="Shortest stay",
        ),
    )
    threshold: float | None = field(
        default=None,
        metadata=_row(
            Number(0, 1), "The probability above which the router defers to an expert; 1 never does.", label="Threshold"
        ),
    )
    kl_budget: float | None = field(
        default=None,
        metadata=_row(
            Number(0, MAX_BUDGET, open=True, unit="nats"),
            "How many nats a token guidance may move the distribution away from the base that it guides.",
            label="KL budget",
        ),
    )
    normalize: Normalize = field(
        default="none",
        metadata=_row(
            OneOf(get_args(Normalize)),
            "What is done to the weights. sum: they are divided by their sum. norm, of methods that merge: the merged "
            "delta gets as long as its members' are.",
            label="Normalize",
        ),
    )
    coefficients: Mapping[str, float] | None = field(
        default=None,
        metadata=_row(
            Weights("an object of numbers by member", example='{"member": 0.5}'),
            "Weights by member, in place of those that the preference would become.",
            label="Coefficients",
            aim=True,
        ),
    )
    terms: Any = field(
        default=None,
        metadata=_row(
            Objects("objects", example='[{"source": "base", "weight": 1}]'),
            "The sum of sources that method custom computes: a list of source and weight.",
            label="Terms",
            aim=True,
        ),
    )
    rank: Mapping[str, Any] | None = field(
        default=None,
        metadata=_row(
            Record(
                {"by": RANKINGS, "per": OneOf(SPANS), "keep": Count(words="n")},
                {"per": "answer", "keep": 1},
                example='{"by": "explicit", "keep": 1}',
            ),
            "Makes n answers, scores them and returns the keep (default 1) best, best first; not together with stream.",
            universal=True,
            whole=True,
        ),
    )
    search: Mapping[str, Any] | None = field(
        default=None,
        metadata=_row(
            Record(
                {
                    "by": OneOf(SEARCHED),
                    "until": Either((OneOf(ENDS), Count(MAX_BLOCK_LENGTH))),
                    "draws": Either(
                        (
                            Count(MAX_DRAWS),
                            Record(
                                {"entropy": Interval(Number(0, MAX_ENTROPY, unit="nats")), "most": Count(MAX_DRAWS)},
                                {"entropy": [0.01, 1.5], "most": 10},
                                example='{"entropy": [0.01, 1.5], "most": 10}',
                            ),
                        )
                    ),
                    "beam": Count(MAX_BEAM),
                },
                {"until": "sentence", "draws": 4, "beam": 1},
                example='{"by": "explicit", "until": 16, "draws": 4, "beam": 1}',
            ),
            "Draws several continuations, to the end of a sentence or of so many tokens, keeps the best text, or the "
            "beam best ones, and goes on from there.",
            label="Search",
            universal=True,
            whole=True,
        ),
    )
    monitor: Mapping[str, Any] | None = field(
        default=None,
        metadata=_row(
            Record(
                {
                    "value": Text("the name of an explicit value"),
                    "ask": Text("a question that is answered with yes or no"),
                    "above": Number(-MAX_VALUE, MAX_VALUE),
                    "for": Count(MAX_HELD),
                    "hold": Count(MAX_HELD),
                },
                {"value": None, "ask": None, "above": None, "for": None, "hold": None},
                example='{"value": "harm", "above": 0.9, "for": 3, "hold": 8}',
                one_of=("value", "ask"),
            ),
            "Watches the answer and ends it where a value is above a bound for so many tokens in a row, or a question "
            "is answered with yes at so many ends of sentences; the last hold of them are never shown.",
            universal=True,
            whole=True,
        ),
    )
    trace: bool = field(
        default=False,
        metadata=_row(Flag(), "Reports what guidance did at every token.", universal=True, whole=True, preset=False),
    )
    schedule: Any = field(
        default=None,
        metadata=_row(
            Objects("parts", most=MAX_PARTS, example='[{"until": 40, "preference": {"name": 1}}, {}]'),
            "Parts of the answer that are steered one after the other: keys of steering each, and in all but the last "
            "`until`, the number of tokens at which it ends.",
            whole=True,
            preset=False,
        ),
    )


OPTIONS: Mapping[str, Option] = {
    entry.name: Option(entry.name, default=entry.default, **entry.metadata) for entry in fields(SteeringOptions)
}
"""The rows by name, in the order in which documents list them."""

AIMS = frozenset(name for name, option in OPTIONS.items() if option.aim)
WHOLE = tuple(name for name, option in OPTIONS.items() if option.whole)
UNIVERSAL = frozenset(name for name, option in OPTIONS.items() if option.universal)
