"""The models of a family that are merged or ensembled together: its values of one kind, or else its policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ladle.guidance.diagnostics.forwards import State
from ladle.guidance.methods.bone_soup import BoneSoup
from ladle.guidance.methods.guidance_method import Request
from ladle.guidance.methods.parm import Parm
from ladle.guidance.methods.rewarded_soup import RewardedSoup
from ladle.guidance.plan import PromptView, Steering
from ladle.guidance.sources import REFERENCE
from ladle.guidance.values import Guide, Kind, guides, usable
from ladle.merging.family.family import Family, ValueMember
from ladle.merging.preferences.preference import Preference


@dataclass(frozen=True)
class GroupMember:
    """One model of a group.

    Attributes:
        name: of the member.
        state: its weights and view of the prompts.
        head: the value whose scalar head it has; None for a language model.
    """

    name: str
    state: State
    head: str | None = None


@dataclass(frozen=True)
class Group:
    """Models that express a preference together.

    Attributes:
        name: how the report calls them.
        explicit: they have scalar heads; language models otherwise.
        members: all of the kind, those that no preference weighs included.
        whole: what a preference is served with by default: one merged guide, or several where they cannot be merged.
        parts: one guide a model; None where one model takes the whole preference.
    """

    name: str
    explicit: bool
    members: tuple[GroupMember, ...]
    whole: Callable[[Preference], Sequence[Guide]]
    parts: Callable[[Preference], Sequence[Guide]] | None


def find_groups(family: Family) -> tuple[list[Group], list[str]]:
    """The groups of a family, and why others are missing. Policies (or backbones) stand in for implicit values where
    there are none: they were tuned from the same base, so that their log-ratios are values too (our choice)."""
    groups, skipped = [], []
    kinds: list[tuple[str, Kind, bool | None]] = [
        ("implicit", "implicit", True),
        ("implicit without a reference", "implicit", False),
        ("explicit", "explicit", None),
    ]
    # Neither set alone covers the objectives: the values are taken together, as a request would take them.
    if not usable(family, "implicit", True).available and not usable(family, "implicit", False).available:
        kinds[:2] = [("implicit", "implicit", None)]
    for name, kind, reference in kinds:
        state = usable(family, kind, reference)
        if state.available:
            groups.append(_values(family, name, kind, reference))
        elif reference is not False:
            skipped.append(f"{name} values: {state.reason}")
    if Parm().availability(family).available:
        groups.append(_conditioned(family))
    # No language models guide here: policies are looked at in their place.
    if all(group.explicit for group in groups):
        policies = _policies(family)
        if policies is None:
            skipped.append("policies: there is neither one per objective nor a set of backbones with a matrix")
        else:
            groups.append(policies)
    return groups, skipped


def state_of(guide: Guide) -> State:
    """The tuned weights of a guide on its view of the prompts."""
    return State.of(guide.model, dict(guide.coefficients), guide.view)


def untuned(guide: Guide) -> State:
    """The plain model that a guide was grown from, on the same prompts."""
    return State(guide.model, (), guide.view)


def _values(family: Family, name: str, kind: Kind, reference: bool | None) -> Group:
    members = [
        GroupMember(value.name, _state(value), value.name if kind == "explicit" else None)
        for value in family.values
        if value.kind == kind and not value.conditioned and reference in (None, value.reference)
    ]
    return Group(
        name,
        kind == "explicit",
        tuple(members),
        lambda mu: guides(family, kind, mu, None, "merged", reference)[0],
        lambda mu: guides(family, kind, mu, "ensemble", "merged", reference)[0],
    )


def _state(value: ValueMember) -> State:
    view = PromptView("system", value.system) if value.system is not None else None
    return State.of(value.model, {value.member: 1.0}, view)


def _conditioned(family: Family) -> Group:
    """A PBLoRA, as ``parm`` has it: the merge is in its making, so that there is nothing to compare it with."""

    def whole(mu: Preference) -> list[Guide]:
        source = Parm().guidance(Request(family, Steering(), mu, REFERENCE, 1.0)).sources[0]
        return [_guide(source.name, 1.0, source.coefficients, source.model, source.view, reference=False)]

    return Group("conditioned on the preference", False, (), whole, None)


def _policies(family: Family) -> Group | None:
    if RewardedSoup().members(family).available:
        method: RewardedSoup | BoneSoup = RewardedSoup()
        names: Sequence[str] = [family.singles[objective] for objective in family.objectives]
    elif BoneSoup().members(family).available:
        method, names = BoneSoup(), family.backbones
    else:
        return None
    # Weights by member, since several entries of the manifest may share one.
    own = [family.members_of[name] for name in names]

    def terms(mu: Preference) -> list[tuple[str, float]]:
        weights = method.coefficients(family, mu).as_dict()
        return [(family.members_of[name], weight) for name, weight in weights.items() if weight != 0.0]

    return Group(
        "policies" if isinstance(method, RewardedSoup) else "backbones",
        False,
        tuple(GroupMember(name, State.of("", {member: 1.0})) for name, member in zip(names, own, strict=True)),
        lambda mu: [_guide("merged", 1.0, _summed(terms(mu)))],
        lambda mu: [_guide(name, weight, ((name, 1.0),)) for name, weight in terms(mu)],
    )


def _summed(terms: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    total: dict[str, float] = {}
    for name, weight in terms:  # two entries may share their weights
        total[name] = total.get(name, 0.0) + weight
    return tuple(total.items())


def _guide(
    name: str,
    weight: float,
    coefficients: tuple[tuple[str, float], ...],
    model: str = "",
    view: PromptView | None = None,
    reference: bool = True,
) -> Guide:
    return Guide(name, weight, coefficients, (), model, view, reference, ())
