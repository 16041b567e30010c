"""A first ``family.toml`` for a base and members that are there already, from what their folders say."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.merging.checkpoints.base_checkpoint import resolve_base
from ladle.merging.checkpoints.checkpoint_reader import has_checkpoint
from ladle.merging.checkpoints.hub import Progress
from ladle.merging.checkpoints.member_folder import member_folder
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.grown_from import model_that_fits
from ladle.merging.members.adapter import is_peft_folder
from ladle.merging.members.pblora import is_pblora_folder
from ladle.merging.members.router_head import ROUTER_HEAD
from ladle.merging.members.value_head import find_head

_TABLES = {
    "model": "models", "backbone": "backbones", "policy": "policies", "value": "values", "expert": "experts",
}  # fmt: skip
_GROWN = ("value", "expert", "router")
"""Kinds that may be grown from a further model."""
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Draft:
    """A member as the caller names it.

    Attributes:
        kind: backbone, policy, value, expert or router; or model, one beside the base.
        name: the objective it was trained on; of an expert or a model its name.
        place: a folder or a hub id; of an expert also the name of a model, which it is then.
    """

    kind: str
    name: str
    place: str

    @classmethod
    def parse(cls, kind: str, text: str) -> "Draft":
        """``NAME=PLACE``, or a place alone, whose last part is the name then. Raises InputError."""
        name, separator, place = text.partition("=")
        if not separator:
            name, place = "", text
        name = name.strip() or _UNFIT.sub("-", place.rstrip("/").rpartition("/")[2].partition("@")[0]).strip("-.")
        if not name or not place.strip():
            raise InputError(kind, text, "NAME=FOLDER, or a folder or a hub id alone")
        return cls(kind, name, place.strip())


def draft_manifest(
    name: str,
    base: str,
    members: Sequence[Draft],
    root: Path,
    objectives: Sequence[str] = (),
    beta: float | None = None,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> str:
    """The text of a ``family.toml`` that is to lie in ``root``.

    Backbones, policies and values stand for the objectives that they are named after; a value's kind follows from its
    folder: explicit with a scalar head, else implicit. A member whose name another one has is prefixed by its kind.
    Values, experts and the router are grown from the first model of their size, the base before any other.

    Args:
        base: as the caller's working directory understands it: a folder, a GGUF file, a package or a hub id.
        objectives: in order; those of the members, as they come, if empty.
        beta: of ``[soup]``.
        cache_dir: where a converted model is kept.

    Raises:
        FamilyError: a member's folder is not there, or holds no member.
    """
    models = {each.name: each.place for each in members if each.kind == "model"}
    homes = {}
    if models and any(each.kind in _GROWN for each in members):
        homes = {name: resolve_base(place, cache_dir, progress) for name, place in ({"": base} | models).items()}
    folders = [_looked_at(each, models, homes, progress) for each in members]
    of_them = [
        member.name
        for member, folder in zip(members, folders, strict=True)
        if member.kind in ("backbone", "policy", "value") and not is_pblora_folder(folder)
    ]
    named = list(objectives) or list(dict.fromkeys(of_them))
    lines = [f"name = {json.dumps(name)}", f"objectives = {json.dumps(named, ensure_ascii=False)}", ""]
    lines += ["[base]", f"model = {json.dumps(_from(root, base), ensure_ascii=False)}"]
    if beta is not None:
        lines += ["", "[soup]", f"beta = {beta}"]
    taken: set[str] = set()
    for kind in (*_TABLES, "router"):
        for member, folder in zip(members, folders, strict=True):
            if member.kind != kind:
                continue
            entry: dict[str, Any] = {"name": _free(member, taken)}
            if kind == "model":
                entry["model"] = _from(root, member.place)
            elif kind == "expert" and member.place in models:
                entry["base"] = member.place
            else:
                entry["path"] = _from(root, member.place)
            if kind in _GROWN and homes and "base" not in entry and (own := model_that_fits(folder, homes)):
                entry["base"] = own
            if kind == "policy":
                entry["objective"] = member.name
            if kind == "value":
                entry["kind"] = "explicit" if find_head(folder) is not None else "implicit"
                if not is_pblora_folder(folder):
                    entry["objective"] = member.name
            lines += ["", "[router]" if kind == "router" else f"[[{_TABLES[kind]}]]", *_toml(entry)]
    return "\n".join(lines) + "\n"


def _looked_at(member: Draft, models: Mapping[str, str], homes: Mapping[str, Path], progress: Progress | None) -> Path:
    """The member's folder. Raises FamilyError where it holds neither an adapter nor a checkpoint."""
    if member.kind == "model" or (member.kind == "expert" and member.place in models):
        return homes.get(member.name if member.kind == "model" else member.place, Path.cwd())
    folder = member_folder(member.place, Path.cwd(), progress)
    alone = member.kind == "router" and (folder / ROUTER_HEAD).is_file()
    if is_peft_folder(folder) or has_checkpoint(folder) or alone:
        return folder
    steps = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    inner = [path for _, path in sorted(steps) if is_peft_folder(path) or has_checkpoint(path)]
    hint = f"; {inner[-1]} holds one" if inner else ""
    raise FamilyError(
        folder, f"{member.kind} {member.name!r}: neither an adapter nor a checkpoint in safetensors{hint}"
    )


def _free(member: Draft, taken: set[str]) -> str:
    name, number = member.name if member.kind != "router" else "router", 1
    while name in taken:
        name = f"{member.kind}-{member.name}" + (f"-{number}" if number > 1 else "")
        number += 1
    taken.add(name)
    return name


def _from(root: Path, place: str) -> str:
    """A place as a manifest in ``root`` writes it: relative where it lies below, absolute elsewhere, else as given."""
    path = Path(place)
    if place.startswith("~") or not path.exists():
        return place
    whole = path.resolve()
    return os.path.relpath(whole, root.resolve()) if whole.is_relative_to(root.resolve()) else str(whole)


def _toml(entry: Mapping[str, Any]) -> list[str]:
    # JSON's strings are TOML's.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
