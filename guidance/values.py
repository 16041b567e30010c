"""Which value models guide towards a preference, with what weights, and as how many sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ladle.guidance.method import Availability
from ladle.guidance.plan import PromptView, Source
from ladle.merging.exceptions import CodedText, InputError, code_of
from ladle.merging.family.family import Family, ValueMember
from ladle.merging.preferences.coefficients import bone_soup, check_matrix
from ladle.merging.preferences.preference import Preference

Kind = Literal["implicit", "explicit"]


@dataclass(frozen=True)
class Guide:
    """One source's share of the guidance: one value, or several that are merged into one set of weights.

    Attributes:
        name: the value's name, or ``guide`` and ``value`` for merged ones.
        weight: of its score.
        coefficients: (member, coefficient) of its weights.
        head: (value, weight) of its scalar head; empty for an implicit value.
        model: the model that its coefficients change.
        view: its own view of the prompt.
        reference: whether the score of the plain model is to be subtracted.
        values: the values in it.
    """

    name: str
    weight: float
    coefficients: tuple[tuple[str, float], ...]
    head: tuple[tuple[str, float], ...]
    model: str
    view: PromptView | None
    reference: bool
    values: tuple[ValueMember, ...]

    def source(self, weight: float | None = None) -> Source:
        """What computes it."""
        role = "value" if self.head else "guide"
        own = self.weight if weight is None else weight
        return Source(self.name, role, own, self.coefficients, self.model, self.view, self.head)

    def untuned(self, weight: float) -> Source:
        """The plain model that its values were grown from, on the same prompt."""
        return Source("reference", "reference", weight, (), self.model, self.view)


def usable(family: Family, kind: Kind, reference: bool | None = None) -> Availability:
    """Whether the family's values of ``kind`` can express every preference; ``reference``: implicit ones with a
    reference only, without one only, or all."""
    return _choose(family, kind, reference)[1]


def guides(
    family: Family,
    kind: Kind,
    preference: Preference,
    combine: str | None,
    default: Literal["merged", "ensemble"],
    reference: bool | None = None,
) -> tuple[list[Guide], tuple[str, ...]]:
    """The guides that a preference mu asks for, and warnings.

    Values that were trained on one objective each have the weights mu. Values that were trained on mixes of rewards,
    with the mixes as the rows of B, have the w that solves B^T w = mu: rewards combine linearly, so their weighed sum
    is mu . r (the same rule as Bone Soup's for policies; for values it is our reconstruction). Values of weight 0 are
    left out.

    Args:
        combine: ``merged``: theta = theta_0 + sum_i w_i (theta_i - theta_0) as one guide of weight 1, scalar heads
            included; ``ensemble``: one guide each, of weight w_i; None: as ``default``, but an ensemble where the
            values cannot be merged.
        reference: see ``usable``.

    Raises:
        InputError: ``merged`` was asked for, but values see different prompts, belong to different models, or only
            some of them have a reference.
    """
    chosen, state = _choose(family, kind, reference)
    assert state.available, state.reason
    weights, warnings = _weights(kind, chosen, preference)
    parts = [(value, weight) for value, weight in zip(chosen, weights, strict=True) if weight != 0.0]
    # Merging needs one model, one prompt and one kind of score; only values that take part can stand in the way.
    obstacle = _obstacle([value for value, _ in parts])
    if obstacle and combine == "merged":
        raise InputError("steering.combine", combine, "ensemble", obstacle)
    if obstacle and combine is None and default == "merged":
        warnings += (CodedText("values_ensembled", f"{kind} values are ensembled, because {obstacle}"),)
    if obstacle or (combine or default) == "ensemble":
        return [_guide(value.name, weight, [(value, 1.0)], kind) for value, weight in parts], warnings
    return [_guide("guide" if kind == "implicit" else "value", 1.0, parts, kind)], warnings


def _guide(name: str, weight: float, parts: Sequence[tuple[ValueMember, float]], kind: Kind) -> Guide:
    # Model, prompt and reference are the same for all parts: what differs was refused or ensembled before.
    first = parts[0][0]
    coefficients: dict[str, float] = {}
    for value, share in parts:  # two values may share their weights and differ in their heads
        # Shares are added by member, because that is what is merged; heads stay by value.
        coefficients[value.member] = coefficients.get(value.member, 0.0) + share
    return Guide(
        name=parts[0][0].name if len(parts) == 1 else name,
        weight=weight,
        coefficients=tuple((member, share) for member, share in coefficients.items() if share != 0.0),
        head=tuple((value.name, share) for value, share in parts) if kind == "explicit" else (),
        model=first.model,
        view=PromptView("system", first.system) if first.system is not None else None,
        reference=first.reference,
        values=tuple(value for value, _ in parts),
    )


def _choose(family: Family, kind: Kind, reference: bool | None) -> tuple[tuple[ValueMember, ...], Availability]:
    """The values that guide, and whether there are enough: one value per objective, else the values trained on reward
    mixes. A set that uniformly has, or lacks, a reference is preferred."""
    values = [value for value in family.values if value.kind == kind and not value.conditioned]
    if kind == "implicit" and reference is None and len({value.reference for value in values}) == 2:
        for uniform in (True, False):
            # First the values with a reference, then those without; all of them together only where neither covers the
            # objectives.
            chosen, state = _choose(family, kind, uniform)
            if state.available:
                return chosen, state
    values = [value for value in values if reference in (None, value.reference)]
    words = f"{kind} value" + {None: "", True: " with a reference", False: " without a reference"}[reference]
    if not values:
        return (), Availability(False, f"the family has no {words.replace('value', 'values', 1)}")
    if not family.objectives:
        return (), Availability(False, "the family has no objectives")
    singles: dict[str, ValueMember] = {}
    for value in values:
        if value.objective is not None:
            singles.setdefault(value.objective, value)
    missing = [objective for objective in family.objectives if objective not in singles]
    if not missing:
        return tuple(singles[objective] for objective in family.objectives), Availability(True)
    # No single values at all: the mixes must span the objectives, one row of B each.
    rows = tuple(value for value in values if value.rewards is not None)
    if singles or not rows:
        names = ", ".join(repr(name) for name in missing)
        return (), Availability(False, f"no {words} for objective {names}")
    if len(rows) != len(family.objectives):
        reason = f"{len(rows)} {kind} values with rewards for {len(family.objectives)} objectives; as many are needed"
        return (), Availability(False, reason)
    try:
        check_matrix(_matrix(rows))
    except ValueError as error:
        return (), Availability(False, f"the rewards of the {kind} values: {error}")
    return rows, Availability(True)


def _weights(
    kind: Kind, values: tuple[ValueMember, ...], preference: Preference
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    # One value per objective has the preference's own weights; values of reward mixes have those that solve for it.
    if all(value.objective is not None for value in values):
        wanted = preference.as_dict()
        return tuple(wanted[value.objective or ""] for value in values), ()
    # The same solve as Bone Soup's, with values in the place of backbones: B^T w = mu.
    solved = bone_soup(preference, _matrix(values), [value.name for value in values])
    return solved.values, tuple(
        CodedText(code_of(warning) or "values", f"{kind} values: {warning}") for warning in solved.warnings
    )


def _matrix(values: Sequence[ValueMember]) -> list[tuple[float, ...]]:
    """B, row j the reward weights of value j; a row that is missing is empty."""
    return [value.rewards or () for value in values]


def _obstacle(values: Sequence[ValueMember]) -> str:
    """Why the values cannot be merged into one set of weights; empty if they can."""
    # Against the first of them: merging is possible only if all of them share it.
    for words, keys in (
        ("belong to different models", [value.model for value in values]),
        ("have different system messages", [value.system for value in values]),
        ("do not all have a reference", [value.reference for value in values if value.kind == "implicit"]),
    ):
        for value, key in zip(values, keys, strict=False):
            if key != keys[0]:
                return f"{values[0].name} and {value.name} {words}"
    return ""


def watching(value: ValueMember) -> Source:
    """What asks one explicit value about an answer and adds nothing to its scores."""
    return _guide(value.name, 0.0, [(value, 1.0)], "explicit").source()


def log_ratio(guides: Sequence[Guide], strength: float) -> list[Source]:
    """The sources of strength * sum_i w_i (l_i - l_ref), and of strength * sum_i w_i l_i without references.

    The token's share of an implicit value beta * (log pi_i(y|x) - log pi_ref(y|x)), its beta in the strength; both see
    the same prompt. References of the same model and prompt become one source (``sources.arrange``).
    """
    terms = []
    for guide in guides:
        terms.append(guide.source(strength * guide.weight))
        if guide.reference:
            terms.append(guide.untuned(-strength * guide.weight))
    return terms
