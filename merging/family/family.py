"""A family in memory: manifest, base, members, all checked against each other."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ladle.merging.checkpoints.architecture import Architecture
from ladle.merging.checkpoints.base_checkpoint import Progress
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.checkpoints.vocabulary import without_embedding
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.calibration import Calibration, load_calibration
from ladle.merging.family.chat_manner import ChatManner, read_conversation
from ladle.merging.family.family_model import FamilyModel, open_model, require_same_tokens
from ladle.merging.family.load_members import MemberLoader, grown_from, place_of
from ladle.merging.family.manifest import Manifest, load_manifest
from ladle.merging.family.manifest_tables import HEADED, MemberTable, Value
from ladle.merging.family.place import find_manifest
from ladle.merging.family.surface import Surface, load_surface
from ladle.merging.members.adapter import LowRankMember
from ladle.merging.members.full_member import FullMember
from ladle.merging.members.pblora import PBLora
from ladle.merging.members.router_head import RouterMember
from ladle.merging.members.steering_vector import SteeringVector
from ladle.merging.members.value_head import ValueHead
from ladle.merging.preferences.delta_norms import DeltaNorms


@dataclass(frozen=True)
class MemberInfo:
    """One row of ``GET /v1/families`` and of ``ladle check``.

    Attributes:
        name: of the member.
        kind: what it is in the manifest: policy, backbone, expert, value, ...
        objective: what it was trained on alone; None elsewhere.
        rewards: the mix it was trained on, in the order of the objectives; None elsewhere.
        storage: ``low-rank``, ``full``, ``vector``, or ``plain`` for an expert or router that is its model as it is.
        rank: largest rank of its modules; None for one that is not low-rank.
        parameters: number of parameters as saved.
        bytes: bytes as saved.
    """

    name: str
    kind: str
    storage: str
    rank: int | None
    parameters: int
    bytes: int
    objective: str | None
    rewards: tuple[float, ...] | None


@dataclass(frozen=True)
class ValueMember:
    """A value model as methods see it.

    Attributes:
        kind: ``implicit``, ``explicit`` or ``monitor``.
        objective, rewards: what it was trained on: one objective, or a mix (a row of a backbone-reward matrix).
        member: the loaded member whose weights it has; an entry that names an earlier one's folder shares its weights.
        model: the model it was grown from: "" for the base, or a name of ``[[models]]``.
        reference: an implicit value's score is taken against the model it was grown from.
        system: its own system message.
        anti: member that speaks against the objective.
        conditioned: (objective, member) whose coefficients are the preference's weights; empty but for values that
            take the whole preference.
    """

    name: str
    kind: str
    objective: str | None
    rewards: tuple[float, ...] | None
    member: str
    model: str
    reference: bool
    system: str | None
    anti: str | None
    conditioned: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """A family whose models and members were read and agree.

    Attributes:
        manifest: the validated family.toml.
        root: the folder of family.toml.
        models: the base under "", then those of ``[[models]]``; each with its members.
        objectives: names, in order.
        matrix: B, float64 ``[n, n]``, row j the reward weights of backbone j; None where the manifest has none.
        kinds: kind by name of every loaded entry.
        members_of: name of the member whose weights an entry has, by the entry's name.
        backbones: members of the backbones in manifest order, which is the order of B's rows.
        singles: objective -> member of its single-objective policy.
        values: value models in manifest order.
        heads: scalar head by the name of an explicit value.
        amateur: the entry of ``[[models]]`` that is one, or None.
        pbloras: by the name of the value that loaded one.
        experts: names of the experts in manifest order, which is the order of the router's rows; no two have the same
            member.
        router: what chooses among the experts; there is one if and only if there are experts.
        grown: the model of ``[[models]]`` by the name of a member that was grown from one.
        calibration: how rewards follow preferences, where that was measured on these very members.
        surface: how rewards follow merge coefficients, on the same terms.
        cache_dir: what ``load_family`` was asked, for whoever loads the same again.
        left_out: likewise.
        warnings: what was read and is not used, or may not be what is meant, in sentences.
        conversation: chat template and end tokens besides the base's own.
    """

    manifest: Manifest
    root: Path
    models: dict[str, FamilyModel]
    objectives: tuple[str, ...]
    matrix: NDArray[np.float64] | None
    kinds: dict[str, str] = field(default_factory=dict)
    members_of: dict[str, str] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    singles: dict[str, str] = field(default_factory=dict)
    values: tuple[ValueMember, ...] = ()
    heads: dict[str, ValueHead] = field(default_factory=dict)
    amateur: str | None = None
    pbloras: dict[str, PBLora] = field(default_factory=dict)
    experts: tuple[str, ...] = ()
    router: RouterMember | None = None
    grown: dict[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    surface: Surface | None = None
    cache_dir: Path | None = None
    left_out: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    conversation: ChatManner = field(default_factory=ChatManner)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def base_path(self) -> Path:
        """Folder of the base's safetensors, config and tokenizer."""
        return self.models[""].base_path

    @property
    def base_revision(self) -> str:
        """Identity of the base's weights, hex (see ``base_identity``)."""
        return self.models[""].base_revision

    @property
    def base(self) -> ConvertedReader:
        """The base's weights, memory-mapped, under the names that they have in the model."""
        return self.models[""].base

    @property
    def architecture(self) -> Architecture:
        """The base's linear modules and ties."""
        return self.models[""].architecture

    @property
    def low_rank(self) -> dict[str, LowRankMember]:
        """Low-rank members of the base by name."""
        return self.models[""].low_rank

    @property
    def full(self) -> dict[str, FullMember]:
        """Full-weight members of the base by name."""
        return self.models[""].full

    @property
    def vectors(self) -> dict[str, SteeringVector]:
        """Steering vectors of the base by name."""
        return self.models[""].vectors

    @cached_property
    def delta_norms(self) -> DeltaNorms:
        """The norms of the base's low-rank members."""
        return DeltaNorms(self.low_rank)

    @property
    def extrapolation(self) -> dict[str, float]:
        """k_i by objective, as the manifest gives them."""
        return dict(self.manifest.soup.extrapolation) if self.manifest.soup else {}

    @property
    def mergeable(self) -> tuple[str, ...]:
        """Names of the members of the base that may take part in a merge, in manifest order: language models all."""
        others = {value.name for value in self.values if value.kind in HEADED or value.conditioned}
        return tuple(
            name
            for name in self.kinds
            if self.members_of[name] == name and (name in self.low_rank or name in self.full) and name not in others
        )

    @property
    def weighable(self) -> tuple[str, ...]:
        """Names that ``coefficients`` may give a number: members that may take part in a merge, then vectors."""
        return (*self.mergeable, *self.vectors)

    def model_of(self, member: str) -> str:
        """The model that a loaded member was grown from: "" for the base, or a name of ``[[models]]``."""
        return self.grown.get(member, "")

    def members(self) -> list[MemberInfo]:
        """What is loaded, in manifest order."""
        rows = []
        for kind, entry in self.manifest.members():
            if entry.name not in self.kinds:
                continue
            model = self.models[grown_from(entry)]
            name = self.members_of[entry.name]
            member = self.pbloras.get(name) or model.low_rank.get(name) or model.vectors.get(name) or model.full[name]
            rewards = getattr(entry, "rewards", None)
            if kind == "backbone" and rewards is None and self.matrix is not None:
                rewards = self.matrix[self.backbones.index(name)].tolist()
            rows.append(
                MemberInfo(
                    name=entry.name,
                    kind=kind,
                    storage=_storage(member),
                    rank=None if isinstance(member, (FullMember, SteeringVector)) else member.rank or None,
                    parameters=member.numel(),
                    bytes=member.nbytes(),
                    objective=getattr(entry, "objective", None),
                    rewards=tuple(rewards) if rewards is not None else None,
                )
            )
        return rows


def _storage(member: FullMember | LowRankMember | PBLora | SteeringVector) -> str:
    if isinstance(member, SteeringVector):
        return "vector"
    return "full" if isinstance(member, FullMember) else "low-rank" if member.rank else "plain"


def load_family(
    name_or_path: str | Path,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    left_out: Collection[str] = (),
    chat_template: str | Path | None = None,
) -> Family:
    """Load a family and check all of it.

    Args:
        name_or_path: a built-in name such as ``demo``, a folder with ``family.toml``, that file, or a repository of the
            hub that has one, ``ORG/FAMILY`` or ``ORG/FAMILY@REVISION``.
        cache_dir: where a converted base is kept (see ``resolve_base``).
        progress: called with one line before anything that takes long.
        left_out: names of members that are not loaded, as if they were not in the manifest.
        chat_template: a file with the chat template to use, whatever base, members and manifest say.

    Raises:
        FamilyError: naming file, tensor or key, and reason.
    """
    file = find_manifest(name_or_path, progress)
    manifest = load_manifest(file, left_out)
    root = file.parent
    models = {"": open_model("", manifest.base.model, root, cache_dir, progress)}
    for further in manifest.models:
        models[further.name] = open_model(further.name, further.model, root, cache_dir, progress)
        require_same_tokens(models[""], models[further.name], further.tokenizer)
    speakers: list[tuple[str, Path]] = []
    loader = MemberLoader(models, manifest.objectives, len(manifest.experts))
    kinds: dict[str, str] = {}
    folders: list[tuple[MemberTable, Path]] = []
    for kind, entry in manifest.members():
        try:
            folders.append((entry, place_of(entry, models, root, progress)))
        except FamilyError as error:
            raise FamilyError(file, f"{kind} {entry.name!r}: {error.reason}") from error
        kinds[entry.name] = kind
    # Before any member is loaded: members that have apart what the base ties change what the base's own layers are
    # checked against.
    loader.untie(folders)
    for entry, path in folders:
        kind = kinds[entry.name]
        if progress:
            progress(f"reading {kind} {entry.name}")
        loader.load(entry, path)
        if kind in ("backbone", "policy", "expert") and loader.members_of[entry.name] == entry.name:
            speakers.append((entry.name, path))
    own_template = None if manifest.chat_template is None else root / Path(manifest.chat_template).expanduser()
    template = own_template if chat_template is None else Path(chat_template)
    base_path = models[""].base_path
    unknown = without_embedding(base_path, models[""].architecture.vocabulary)
    conversation = read_conversation(base_path, speakers, template, manifest.stop_tokens, file)
    _different(file, "experts", manifest.experts, loader)  # no router could tell two equal ones apart
    return Family(
        manifest=manifest,
        root=root,
        models=models,
        objectives=tuple(manifest.objectives),
        matrix=manifest.matrix(),
        kinds=kinds,
        members_of=loader.members_of,
        backbones=_different(file, "backbones", manifest.backbones, loader),
        singles={
            entry.objective: member
            for entry, member in zip(
                manifest.policies, _different(file, "policies", manifest.policies, loader), strict=True
            )
            if entry.objective is not None
        },
        values=tuple(_value(entry, loader) for entry in manifest.values),
        heads=loader.heads,
        pbloras=loader.pbloras,
        amateur=next((model.name for model in manifest.models if model.amateur), None),
        experts=tuple(entry.name for entry in manifest.experts),
        router=loader.router,
        grown=loader.grown,
        calibration=load_calibration(root, manifest),
        surface=load_surface(root, manifest),
        cache_dir=None if cache_dir is None else Path(cache_dir),
        left_out=frozenset(left_out),
        warnings=tuple(dict.fromkeys((*unknown, *loader.notes, *loader.named_bases(), *conversation.warnings))),
        conversation=conversation,
    )


def _different(file: Path, kind: str, entries: Sequence[MemberTable], loader: MemberLoader) -> tuple[str, ...]:
    """The members of entries that are merged with each other, each of which must have its own."""
    members: dict[str, str] = {}
    for entry in entries:
        first = members.setdefault(loader.members_of[entry.name], entry.name)
        if first != entry.name:
            raise FamilyError(file, f"{kind}: {first!r} and {entry.name!r} have the same folder, {entry.path}")
    return tuple(members)


def _value(entry: Value, loader: MemberLoader) -> ValueMember:
    conditioned = loader.conditioned(entry)
    return ValueMember(
        name=entry.name,
        kind=entry.kind,
        objective=entry.objective,
        rewards=None if entry.rewards is None else tuple(entry.rewards),
        member=loader.members_of[entry.name],
        model=entry.base or "",
        reference=not conditioned if entry.reference is None else entry.reference,
        system=entry.system,
        anti=None if entry.anti is None else loader.members_of[entry.anti],
        conditioned=conditioned,
    )
