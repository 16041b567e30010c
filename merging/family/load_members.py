"""Loading members: each goes to the model it was grown from, and a folder that several entries name is read once."""

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

from ladle.merging.checkpoints.checkpoint_reader import has_checkpoint
from ladle.merging.checkpoints.hub import Progress
from ladle.merging.checkpoints.member_folder import member_folder
from ladle.merging.checkpoints.vocabulary import require_shared_vocabulary
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family_model import FamilyModel
from ladle.merging.family.manifest_tables import HEADED, Expert, MemberTable, Router, Value, Vector
from ladle.merging.members.adapter import CONFIG, LowRankMember, is_peft_folder, load_peft
from ladle.merging.members.full_member import FullMember, load_full, unties
from ladle.merging.members.mlx_adapter import is_mlx_folder, load_mlx
from ladle.merging.members.named_base import other_bases
from ladle.merging.members.pblora import PBLora, is_pblora_folder, load_pblora
from ladle.merging.members.router_head import RouterMember, load_router_head
from ladle.merging.members.steering_vector import load_vector, vector_file
from ladle.merging.members.value_head import ValueHead, load_value_head


def grown_from(entry: MemberTable) -> str:
    """The model that a manifest's entry was grown from: "" for the base, or a name of ``[[models]]``."""
    return getattr(entry, "base", None) or ""


def place_of(
    entry: MemberTable, models: Mapping[str, FamilyModel], root: Path, progress: Progress | None = None
) -> Path:
    """The folder of a member: its path's, or without one that of its model, which it is; of a vector its file. Raises
    FamilyError."""
    if isinstance(entry, Vector):
        return vector_file(entry.path, root)
    return member_folder(entry.path, root, progress) if entry.path else models[grown_from(entry)].base_path


def _as_it_is(entry: Expert | Router, path: Path, model: FamilyModel) -> bool:
    """Whether an expert or a router is ``model`` with no change: in its folder, or in one with the head alone."""
    if path.resolve() == model.base_path.resolve():
        return True
    return isinstance(entry, Router) and not is_peft_folder(path) and not has_checkpoint(path)


class MemberLoader:
    """Loads members one after the other into ``models``.

    Attributes:
        members_of: name of the member whose weights an entry has, by the entry's name.
        grown: the further model by the name of a member that was grown from one.
        heads: scalar head by the name of an explicit value.
        pbloras: by the name of the value that loaded one.
        router: with its head, None before it was loaded.
        notes: what members hold and is not used, in sentences.
    """

    def __init__(self, models: MutableMapping[str, FamilyModel], objectives: Sequence[str], experts: int = 0) -> None:
        self.members_of: dict[str, str] = {}
        self.grown: dict[str, str] = {}
        self.heads: dict[str, ValueHead] = {}
        self.pbloras: dict[str, PBLora] = {}
        self.router: RouterMember | None = None
        self.notes: list[str] = []
        self._models = models
        self._experts = experts
        self._objectives = tuple(objectives)
        self._loaded: dict[tuple[str, Path], str] = {}

    def untie(self, entries: Sequence[tuple[MemberTable, Path]]) -> None:
        """Let the models have apart what they tie and any of these members, all of them full, has apart. Before they
        are loaded, which says what is wrong with one that cannot be read.
        """
        for entry, path in entries:
            value = entry if isinstance(entry, Value) else None
            if isinstance(entry, Vector) or is_peft_folder(path) or (value is not None and value.kind in HEADED):
                continue  # no head of an explicit value is ever asked for
            name = grown_from(entry)
            model = self._models[name]
            if not model.architecture.tied:
                continue
            with suppress(FamilyError):
                if apart := unties(path, model.architecture):
                    self._models[name] = model.untied(frozenset(apart))

    def load(self, entry: MemberTable, path: Path) -> None:
        """Read the member of a manifest entry from ``path``, or share what an earlier entry read from there.

        Raises:
            FamilyError: naming file and tensor: the member fits neither the model nor what the entry says of it.
        """
        value = entry if isinstance(entry, Value) else None
        model = self._models[grown_from(entry)]
        if isinstance(entry, Vector):
            layers, hidden = model.architecture.layers, model.architecture.hidden
            model.vectors[entry.name] = load_vector(path, entry.name, layers, hidden)
            self.members_of[entry.name] = entry.name
            return
        explicit = value is not None and value.kind in HEADED
        conditioned = value is not None and value.conditioned
        # The manifest's entry and what lies in its folder must agree on whether one value takes the whole preference.
        if conditioned != is_pblora_folder(path):
            reason = (
                f"value {entry.name!r} has neither objective nor rewards, so that it must be a PBLoRA, which it is not"
                if conditioned
                else f"{entry.name!r} is a PBLoRA; only implicit values without objective and rewards may be"
            )
            raise FamilyError(path / CONFIG, reason)
        # A folder that several entries name is read once per model: the first entry's name is the member's, and the
        # others point to it.
        place = (model.name, path.resolve())
        first = self._loaded.setdefault(place, entry.name)
        self.members_of[entry.name] = first
        if model.name:
            self.grown[first] = model.name
        # By what the folder holds: a PBLoRA becomes one member per objective, an expert may be its model as it is,
        # anything else is an adapter or a checkpoint.
        if value is not None and conditioned:
            self._load_pblora(model, value, path, first)
        elif first == entry.name and isinstance(entry, (Expert, Router)) and _as_it_is(entry, path, model):
            model.low_rank[entry.name] = LowRankMember(entry.name, path, {})
        elif first == entry.name:
            self._load(model, entry.name, path, explicit)
        elif first in model.full and not explicit:
            # It may have been read for an explicit value, which does with less than a language model needs.
            load_full(path, entry.name, model.base, model.architecture, check_values=False)
        if explicit:
            self.heads[entry.name] = load_value_head(path, model.architecture.hidden)
        if isinstance(entry, Router):
            head = load_router_head(path, self._experts, model.architecture.hidden)
            self.router = RouterMember(entry.name, first, head, model.name)

    def conditioned(self, value: Value) -> tuple[tuple[str, str], ...]:
        """(objective, member) of a loaded value that takes the whole preference; empty for any other."""
        pblora = self.pbloras.get(self.members_of[value.name])
        if pblora is None:
            return ()
        rows = zip(self._order(value), pblora.rows, strict=True)
        return tuple((objective, member.name) for objective, (_, member) in rows)

    def named_bases(self) -> list[str]:
        """Notes about adapters that name another base than the model they were given to."""
        notes = []
        for model in self._models.values():
            # A PBLoRA's rows, which are called NAME@OBJECTIVE, are one adapter.
            adapters = {name: member.path for name, member in model.low_rank.items() if "@" not in name}
            notes += other_bases(adapters, model.base_path, model.spec)
        return notes

    def _order(self, value: Value) -> Sequence[str]:
        return self._objectives if value.objectives is None else value.objectives

    def _load_pblora(self, model: FamilyModel, value: Value, path: Path, first: str) -> None:
        # Read again where it is shared, so that the objectives of every entry are checked; it is small.
        linear, rename = model.architecture.linear, model.architecture.module
        pblora = load_pblora(path, value.name, self._order(value), linear, rename)
        if first == value.name:
            self.notes += require_shared_vocabulary(model.base_path, path)
            self.pbloras[value.name] = pblora
            for member in (pblora.fixed, *(row for _, row in pblora.rows)):
                model.low_rank[member.name] = member

    def _load(self, model: FamilyModel, name: str, path: Path, explicit: bool) -> None:
        # Adapters of PEFT or of mlx-lm become low-rank members. Everything else is a checkpoint, which stands only
        # beside a plain base.
        member: LowRankMember | FullMember
        linear, rename = model.architecture.linear, model.architecture.module
        if is_peft_folder(path):
            if is_mlx_folder(path):
                member = load_mlx(path, name, linear, rename)
            else:
                own = model.architecture
                member = load_peft(path, name, linear, rename, model.weight, own.head, own.experts)
            model.low_rank[name] = member
            self.notes += require_shared_vocabulary(model.base_path, path)
        elif model.architecture.blueprint.quantization is not None:
            how = model.architecture.blueprint.quantization.name
            reason = f"{name!r} has full weights, and the base is quantised ({how}), which it was not tuned from"
            cure = "give the plain base, or make it low-rank against that (ladle compress)"
            raise FamilyError(path, f"{reason}; {cure}")
        else:
            member = model.full[name] = load_full(path, name, model.base, model.architecture, headed=explicit)
        self.notes += member.notes
