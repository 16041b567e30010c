"""``family.toml``: what a family consists of, parsed and validated before any tensor is touched."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ladle.merging.coefficients import check_matrix, circulant
from ladle.merging.errors import FamilyError, InputError
from ladle.merging.preference import Preference

MANIFEST_NAME = "family.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # "/", "@", "," and "=" have meaning in model strings

Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(_Table):
    """``[base]``: a folder, ``pypi:DISTRIBUTION`` (a GGUF inside an installed wheel) or a hub id."""

    model: str = Field(min_length=1)


class Soup(_Table):
    """``[soup]``: the backbone-reward matrix B, by ``beta`` or as ``matrix``; ``extrapolation`` holds k_i."""

    beta: Finite | None = None
    matrix: list[list[Finite]] | None = None
    extrapolation: dict[str, Annotated[Finite, Field(gt=0)]] = {}

    @model_validator(mode="after")
    def _not_both(self) -> "Soup":
        if self.beta is not None and self.matrix is not None:
            raise ValueError("give beta or matrix, not both")
        return self


class Member(_Table):
    """What every member has: a name and where its PEFT LoRA folder or full checkpoint lies."""

    name: str
    path: str = Field(min_length=1)


class Backbone(Member):
    """``[[backbones]]``: a policy trained on a mix of rewards; ``rewards`` is its row of B."""

    rewards: list[Finite] | None = None


class Policy(Member):
    """``[[policies]]``: a policy trained on one objective alone; Rewarded Soup mixes these."""

    objective: str


class Model(_Table):
    """``[[models]]``: a further language model that shares the base's tokenizer, of any size.

    ``amateur``: what contrastive decoding contrasts the base with.
    """

    name: str
    model: str = Field(min_length=1)
    amateur: bool = False


class Value(Member):
    """``[[values]]``: implicit (a tuned language model) or explicit (a trunk with a scalar head).

    ``objective``: what it was trained on, or ``rewards``: the mix, as its row of a backbone-reward matrix; neither for
    an implicit value that takes the whole preference (PBLoRA). ``base``: the entry of ``[[models]]`` it was grown from;
    None for the family's base. ``reference``: an implicit value's score is taken against the model it was grown from.
    ``system``: its own system message. ``anti``: a member of the same model that speaks against the objective.
    """

    kind: Literal["implicit", "explicit"]
    objective: str | None = None
    rewards: list[Finite] | None = None
    base: str | None = None
    reference: bool = True
    system: str | None = None
    anti: str | None = None


class Expert(Member):
    """``[[experts]]``."""


class Router(_Table):
    """``[router]``: an LM adapter and a linear head with one row an expert."""

    path: str = Field(min_length=1)
    name: str = "router"


class Preset(_Table):
    """``[presets.NAME]``: steering options under a name that clients may send as ``model``."""

    method: str | None = None
    preference: dict[str, Finite] | None = None
    coefficients: dict[str, Finite] | None = None
    strength: Finite | dict[str, Finite] | None = None
    value: str | None = None
    combine: str | None = None
    candidates: int | None = None
    block_length: int | None = None
    terms: list[dict[str, Any]] | None = None
    normalize: str | None = None
    negative_prompt: str | None = None
    divergence: str | None = None
    alpha: Finite | None = None


class Manifest(_Table):
    """A validated ``family.toml``."""

    name: str
    objectives: list[str] = []
    default_method: str | None = None
    base: Base
    soup: Soup | None = None
    backbones: list[Backbone] = []
    policies: list[Policy] = []
    values: list[Value] = []
    models: list[Model] = []
    experts: list[Expert] = []
    router: Router | None = None
    presets: dict[str, Preset] = {}

    def members(self) -> Iterator[tuple[str, Member | Router]]:
        """(kind, entry) of every member in manifest order: backbone, policy, value, expert, router."""
        for kind, entries in (
            ("backbone", self.backbones),
            ("policy", self.policies),
            ("value", self.values),
            ("expert", self.experts),
        ):
            for entry in entries:
                yield kind, entry
        if self.router is not None:
            yield "router", self.router

    def matrix(self) -> NDArray[np.float64] | None:
        """B, float64 ``[n, n]``, from ``[soup]`` or from the backbones' ``rewards``; None if neither says.

        Raises:
            ValueError: malformed, singular, or ``[soup]`` and the backbones' rows disagree; the message starts with
                the key.
        """
        n = len(self.objectives)
        declared = None
        if self.soup is not None and self.soup.beta is not None:
            declared = _keyed("soup.beta", circulant, self.soup.beta, n)
        elif self.soup is not None and self.soup.matrix is not None:
            declared = _keyed("soup.matrix", _rectangular, self.soup.matrix)
            declared = _keyed("soup.matrix", check_matrix, declared)[0]
            if len(declared) != n:
                raise ValueError(f"soup.matrix: {len(declared)} rows for {n} objectives")
        rows = [backbone.rewards for backbone in self.backbones]
        for index, row in enumerate(rows):
            key = f"backbones[{index}].rewards"
            if row is not None and len(row) != n:
                raise ValueError(f"{key}: {len(row)} weights for {n} objectives")
            if row is not None and declared is not None and not np.allclose(row, declared[index], atol=1e-6):
                raise ValueError(f"{key}: {row} is not row {index} of [soup], {declared[index].tolist()}")
        if declared is None and rows and all(row is not None for row in rows):
            if len(rows) != n:
                raise ValueError(f"backbones: {len(rows)} backbones with rewards for {n} objectives; need one each")
            declared = _keyed("backbones.rewards", check_matrix, rows)[0]
        return declared


def load_manifest(path: str | Path) -> Manifest:
    """Read and validate ``family.toml``; ``path`` is the file or its folder.

    Raises:
        FamilyError: naming the file and the key: missing, unreadable, unknown or malformed keys, duplicate names,
            unknown objectives, a backbone-reward matrix that is singular or disagrees with the backbones.
    """
    file = Path(path)
    if file.suffix != ".toml" or file.is_dir():
        file = file / MANIFEST_NAME
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FamilyError(file, "no such file; a family is a folder with a family.toml") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FamilyError(file, f"cannot be read as TOML: {error}") from None
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{_key(problem['loc'])}: {problem['msg']}" for problem in error.errors()[:5])
        raise FamilyError(file, problems) from None
    try:
        _check(manifest)
    except ValueError as error:
        raise FamilyError(file, str(error)) from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Everything that relates one table to another. Raises ValueError starting with the key."""
    objectives = manifest.objectives
    _names("objectives", objectives)
    if not _NAME.fullmatch(manifest.name):
        raise ValueError(f"name: {manifest.name!r} must match {_NAME.pattern}")
    _names("members", [entry.name for _, entry in manifest.members()] + [entry.name for entry in manifest.models])
    _objectives("policies", [(entry.objective, "") for entry in manifest.policies], objectives)
    _check_values(manifest)
    if manifest.soup is not None:
        for name in manifest.soup.extrapolation:
            if name not in objectives:
                raise ValueError(f"soup.extrapolation.{name}: unknown objective; known: {', '.join(objectives)}")
        if (manifest.soup.beta is not None or manifest.soup.matrix is not None) and len(manifest.backbones) != len(
            objectives
        ):
            raise ValueError(
                f"backbones: {len(manifest.backbones)} backbones for {len(objectives)} objectives; "
                "[soup] needs one each"
            )
    manifest.matrix()
    _names("presets", list(manifest.presets))
    for name, preset in manifest.presets.items():
        if name == manifest.name:
            raise ValueError(f"presets.{name}: a preset may not be named like the family")
        if preset.preference is not None:
            try:
                Preference.of(preset.preference, objectives, field=f"presets.{name}.preference")
            except InputError as error:
                raise ValueError(str(error)) from None
        known = [entry.name for _, entry in manifest.members()]
        for member in preset.coefficients or {}:
            if member not in known:
                raise ValueError(f"presets.{name}.coefficients.{member}: unknown member; known: {', '.join(known)}")


def _check_values(manifest: Manifest) -> None:
    """``[[values]]`` and ``[[models]]`` against the rest. Raises ValueError starting with the key."""
    models = [model.name for model in manifest.models]
    if sum(model.amateur for model in manifest.models) > 1:
        raise ValueError("models: more than one of them is the amateur")
    bases = {entry.name: entry.base or "" for entry in manifest.values}
    for kind, entry in manifest.members():
        if kind in ("backbone", "policy", "expert"):
            bases[entry.name] = ""
    for index, value in enumerate(manifest.values):
        key = f"values[{index}]"
        if value.base is not None and value.base not in models:
            raise ValueError(
                f"{key}.base: {value.base!r} is no entry of [[models]]; known: {', '.join(models) or 'none'}"
            )
        if value.objective is not None and value.rewards is not None:
            raise ValueError(f"{key}.rewards: give objective or rewards, not both")
        if value.rewards is not None and len(value.rewards) != len(manifest.objectives):
            raise ValueError(f"{key}.rewards: {len(value.rewards)} weights for {len(manifest.objectives)} objectives")
        if value.kind == "explicit" and value.objective is None and value.rewards is None:
            raise ValueError(f"{key}.objective: an explicit value needs an objective or rewards")
        if value.anti is not None and bases.get(value.anti) != (value.base or ""):
            same = [name for name, base in bases.items() if base == (value.base or "") and name != value.name]
            raise ValueError(f"{key}.anti: {value.anti!r} is no member of the same model; known: {', '.join(same)}")
    trained_on: list[tuple[str, str]] = []
    for index, value in enumerate(manifest.values):
        if value.objective is not None:
            how = value.kind if value.reference else f"{value.kind}, reference-free"
            _objectives_at(f"values[{index}].objective", (value.objective, how), trained_on, manifest.objectives)
            trained_on.append((value.objective, how))


def _objectives(table: str, served: list[tuple[str, str]], known: list[str]) -> None:
    """At most one entry an objective (and a kind), each for an objective that exists."""
    for index, entry in enumerate(served):
        _objectives_at(f"{table}[{index}].objective", entry, served[:index], known)


def _objectives_at(key: str, entry: tuple[str, str], earlier: list[tuple[str, str]], known: list[str]) -> None:
    objective, kind = entry
    if objective not in known:
        raise ValueError(f"{key}: unknown objective {objective!r}; known: {', '.join(known)}")
    if entry in earlier:
        raise ValueError(f"{key}: a second {kind} entry for objective {objective!r}".replace("  ", " "))


def _names(key: str, names: list[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{key}: name {name!r} must match {_NAME.pattern}")
        if names.count(name) > 1:
            raise ValueError(f"{key}: name {name!r} occurs {names.count(name)} times")


def _rectangular(rows: list[list[float]]) -> list[list[float]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"rows of different lengths {[len(row) for row in rows]}")
    return rows


def _keyed(key: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function``; a ValueError it raises gets ``key`` in front."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _key(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "family"
