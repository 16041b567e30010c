"""Lines of ``ladle check``'s report about what guides: further models, values, the router."""

from dataclasses import dataclass

from ladle.merging.checkpoints.checkpoint_reader import read_json
from ladle.merging.family.family import Family, ValueMember
from ladle.merging.family.family_model import FamilyModel


@dataclass(frozen=True)
class ModelInfo:
    """A model of ``[[models]]``.

    Attributes:
        name: in ``[[models]]``.
        folder, revision: where it lies, and the digest of its weights.
        architecture: the class of the model.
        parameters, bytes: numbers as saved.
        amateur: whether it is what contrastive decoding contrasts the base with.
        drafts: whether it is the draft model: what guesses tokens under ``ladle serve --speculate model``.
        vocabulary: number of token ids, padding included.
        hidden: size of the last hidden state.
        members: names of the members that were grown from it.
    """

    name: str
    folder: str
    revision: str
    architecture: str
    parameters: int
    bytes: int
    vocabulary: int
    hidden: int
    amateur: bool
    drafts: bool
    members: tuple[str, ...]


@dataclass(frozen=True)
class ValueInfo:
    """A value as methods see it.

    Attributes:
        name: of the value.
        kind: ``implicit``, ``explicit`` or ``monitor``.
        trained_on: an objective, or the rewards of a mix, or (PBLoRA) the objectives of the preference it takes.
        model: what it was grown from: a name of ``[[models]]``, or "" for the base.
        weights: the member whose weights it has; another's where both name one folder.
        reference: its score is taken against the model it was grown from; None for an explicit value.
        system: the system message under which it reads; None for the request's own.
        anti: the member of the same model that speaks against the objective; None without one.
        head: ``norm`` and ``bias`` of the scalar head of an explicit value, else None.
    """

    name: str
    kind: str
    trained_on: str
    model: str
    weights: str
    reference: bool | None
    system: str | None
    anti: str | None
    head: dict[str, float] | None

    @property
    def details(self) -> str:
        """What is not as it usually is, for a table."""
        parts = []
        if self.model:
            parts.append(f"grown from {self.model}")
        if self.weights != self.name:
            parts.append(f"weights of {self.weights}")
        if self.reference is False:
            parts.append("no reference")
        if self.head is not None:
            parts.append(f"head of norm {self.head['norm']:.3g}, bias {self.head['bias']:.3g}")
        if self.system is not None:
            parts.append("own system message")
        if self.anti is not None:
            parts.append(f"anti-expert {self.anti}")
        return "; ".join(parts)


@dataclass(frozen=True)
class ExpertInfo:
    """An expert and its row of the router's head.

    Attributes:
        weights: the member whose weights it has; another's where both name one folder.
        norm, bias: of its row.
        model: what it was grown from: a name of ``[[models]]``, or "" for the base.
    """

    name: str
    weights: str
    norm: float
    bias: float
    model: str = ""


@dataclass(frozen=True)
class RouterInfo:
    """The router.

    Attributes:
        name: of the router.
        weights: the member whose weights it has.
        experts: in the order of its rows.
        defer: ``norm`` and ``bias`` of the deferral logit, None for a router without.
        model: what it was grown from, as of an expert.
    """

    name: str
    weights: str
    experts: tuple[ExpertInfo, ...]
    defer: dict[str, float] | None
    model: str = ""


def router_info(family: Family) -> RouterInfo | None:
    """The line of the router, None for a family without."""
    router = family.router
    if router is None:
        return None
    head = router.head
    rows = zip(family.experts, head.weight.norm(dim=-1).tolist(), head.bias.tolist(), strict=True)
    return RouterInfo(
        name=router.name,
        weights=router.member,
        experts=tuple(
            ExpertInfo(name, member := family.members_of[name], norm, bias, family.model_of(member))
            for name, norm, bias in rows
        ),
        defer=None if head.defer is None else {"norm": float(head.defer.norm()), "bias": head.defer_bias},
        model=router.model,
    )


def model_info(family: Family, model: FamilyModel) -> ModelInfo:
    """The line of a further model."""
    members = [value.name for value in family.values if value.model == model.name]
    members += [name for name in family.experts if family.model_of(family.members_of[name]) == model.name]
    members += [family.router.name] if family.router is not None and family.router.model == model.name else []
    speculation = family.manifest.speculation
    return ModelInfo(
        name=model.name,
        folder=str(model.base_path),
        revision=model.base_revision,
        architecture=model_type(model),
        parameters=model.base.numel(),
        bytes=model.base.nbytes(),
        vocabulary=model.architecture.vocabulary,
        hidden=model.architecture.hidden,
        amateur=model.name == family.amateur,
        drafts=speculation is not None and model.name == speculation.model,
        members=tuple(members),
    )


def value_info(family: Family, value: ValueMember) -> ValueInfo:
    """The line of a value."""
    if value.conditioned:
        trained_on = "the preference over " + ", ".join(objective for objective, _ in value.conditioned)
    else:
        mixed = ", ".join(f"{weight:g}" for weight in value.rewards or ())
        trained_on = value.objective or mixed or "texts with labels"
    head = family.heads.get(value.name)
    return ValueInfo(
        name=value.name,
        kind=value.kind,
        trained_on=trained_on,
        model=value.model,
        weights=value.member,
        reference=value.reference if value.kind == "implicit" else None,
        system=value.system,
        anti=value.anti,
        head=None if head is None else {"norm": float(head.weight.norm()), "bias": head.bias},
    )


def model_type(model: FamilyModel) -> str:
    """What transformers calls the model's architecture."""
    return str(read_json(model.base_path / "config.json").get("model_type"))
