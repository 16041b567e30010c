"""``family.toml``: what a family consists of, parsed and validated before any tensor is touched."""

import re
import tomllib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.default_sampling import FamilySampling
from ladle.merging.family.manifest_tables import (
    HEADED,
    Backbone,
    Base,
    Expert,
    MemberTable,
    ModelTable,
    MonitorTable,
    Policy,
    Preset,
    Router,
    Soup,
    SpeculationTable,
    ThinkingTable,
    Value,
    Vector,
)
from ladle.merging.family.place import MANIFEST_NAME
from ladle.merging.preferences.coefficients import check_matrix, circulant
from ladle.merging.preferences.preference import Preference

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # "/", "@", "," and "=" have meaning in model strings


class Manifest(BaseModel):
    """A validated ``family.toml``.

    Attributes:
        name: of the family.
        objectives: their names, in the order of all weights and rewards.
        default_method: the method of requests that name none.
        chat_template: a file relative to the manifest, which replaces the base's own template.
        stop_tokens: names of tokens that end an answer besides the base's own.
        sampling: how answers are drawn where a request does not say.
        thinking: what a thought in front of an answer is told apart by.
        base: ``[base]``.
        soup: ``[soup]``.
        backbones: ``[[backbones]]``.
        policies: ``[[policies]]``.
        values: ``[[values]]``.
        monitors: ``[[monitors]]``.
        models: ``[[models]]``.
        speculation: which of these is the draft model.
        experts: ``[[experts]]``.
        router: ``[router]``.
        vectors: ``[[vectors]]``.
        presets: ``[presets.NAME]``, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    objectives: list[str] = []
    default_method: str | None = None
    chat_template: str | None = Field(default=None, min_length=1)
    stop_tokens: list[Annotated[str, Field(min_length=1)]] | None = None
    sampling: FamilySampling | None = None
    thinking: ThinkingTable | None = None
    base: Base
    soup: Soup | None = None
    backbones: list[Backbone] = []
    policies: list[Policy] = []
    values: list[Value] = []
    monitors: list[MonitorTable] = []
    models: list[ModelTable] = []
    speculation: SpeculationTable | None = None
    experts: list[Expert] = []
    router: Router | None = None
    vectors: list[Vector] = []
    presets: dict[str, Preset] = {}

    def members(self) -> Iterator[tuple[str, MemberTable]]:
        """(kind, entry) of every member in manifest order: backbone, policy, value, expert, router, vector."""
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
        for vector in self.vectors:
            yield "vector", vector

    def without(self, names: Collection[str]) -> "Manifest":
        """This manifest without the members ``names``; names that no member has are ignored."""
        tables = ("backbones", "policies", "values", "experts", "vectors")
        kept = {table: [entry for entry in getattr(self, table) if entry.name not in names] for table in tables}
        router = None if self.router is not None and self.router.name in names else self.router
        return self.model_copy(update={**kept, "router": router})

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


def load_manifest(path: str | Path, left_out: Collection[str] = ()) -> Manifest:
    """Read and validate ``family.toml`` without the members ``left_out``; ``path`` is the file or its folder.

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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise FamilyError(file, f"cannot be read as TOML: {error}") from None
    try:
        manifest = Manifest.model_validate(document).without(left_out)
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
    _check_policies(manifest)
    _check_values(manifest)
    _check_monitors(manifest)
    _check_routed(manifest)
    if manifest.experts and manifest.router is None:
        raise ValueError("router: missing; [[experts]] need a [router] that chooses among them")
    if manifest.router is not None and not manifest.experts:
        raise ValueError("experts: missing; [router] needs [[experts]] to choose among")
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
    for index, model in enumerate(manifest.models):
        if model.name == "base":
            raise ValueError(f"models[{index}].name: 'base' means the family's base; choose another name")
    if manifest.speculation is not None and manifest.speculation.model not in models:
        known = ", ".join(models) or "none"
        raise ValueError(f"speculation.model: {manifest.speculation.model!r} is no entry of [[models]]; known: {known}")
    trained_on: list[tuple[str, str]] = []
    for index, value in enumerate(manifest.values):
        key = f"values[{index}]"
        if value.base is not None and value.base not in models:
            known = ", ".join(models) or "none"
            raise ValueError(f"{key}.base: {value.base!r} is no entry of [[models]]; known: {known}")
        if value.objective is not None and value.rewards is not None:
            raise ValueError(f"{key}.rewards: give objective or rewards, not both")
        if value.rewards is not None:
            if len(value.rewards) != len(manifest.objectives):
                n = len(manifest.objectives)
                raise ValueError(f"{key}.rewards: {len(value.rewards)} weights for {n} objectives")
            if not any(value.rewards):
                raise ValueError(f"{key}.rewards: all weights are 0")
        _check_kind(key, value, manifest.objectives)
        if value.anti is not None:
            opposing = _opposing(manifest, value)
            if value.anti not in opposing:
                known = ", ".join(opposing) or "none"
                raise ValueError(f"{key}.anti: {value.anti!r} is no language model of the same base; known: {known}")
        if value.objective is not None:
            how = value.kind if value.reference in (None, True) else f"{value.kind}, reference-free"
            _objectives_at(f"{key}.objective", (value.objective, how), trained_on, manifest.objectives)
            trained_on.append((value.objective, how))


def _check_monitors(manifest: Manifest) -> None:
    """``[[monitors]]`` against ``[[values]]``. Raises ValueError starting with the key."""
    _names("monitors", [monitor.name for monitor in manifest.monitors])
    kinds = {value.name: value.kind for value in manifest.values if value.kind in HEADED}
    judges: list[tuple[str | None, str | None]] = []
    for index, monitor in enumerate(manifest.monitors):
        key = f"monitors[{index}]"
        if monitor.value is not None and monitor.value not in kinds:
            known = ", ".join(kinds) or "none"
            raise ValueError(f"{key}.value: {monitor.value!r} is no explicit value of the family; known: {known}")
        if (monitor.ask is not None or kinds[monitor.value or ""] == "monitor") and not 0 <= monitor.above < 1:
            raise ValueError(f"{key}.above: {monitor.above:g} is no probability; allowed: from 0 to below 1")
        if (monitor.value, monitor.ask) in judges:
            raise ValueError(f"{key}: a second monitor that asks {monitor.value or monitor.ask!r}")
        judges.append((monitor.value, monitor.ask))


def _check_routed(manifest: Manifest) -> None:
    """``base`` and ``path`` of experts and the router. Raises ValueError starting with the key."""
    models = [model.name for model in manifest.models]
    entries: list[tuple[str, Expert | Router]] = [(f"experts[{i}]", entry) for i, entry in enumerate(manifest.experts)]
    for key, entry in entries + ([("router", manifest.router)] if manifest.router is not None else []):
        if entry.base is not None and entry.base not in models:
            known = ", ".join(models) or "none"
            raise ValueError(f"{key}.base: {entry.base!r} is no entry of [[models]]; known: {known}")
        if not entry.path and entry.base is None:
            raise ValueError(f"{key}.path: missing; only an expert with a base of its own may do without")


def _check_kind(key: str, value: Value, objectives: list[str]) -> None:
    """Keys that say something only of one kind of value. Raises ValueError."""
    if value.kind == "monitor":
        for name in ("objective", "rewards"):
            if getattr(value, name) is not None:
                raise ValueError(f"{key}.{name}: {getattr(value, name)!r} says nothing of a monitor; leave it out")
    if value.kind in HEADED:
        if value.conditioned:
            raise ValueError(f"{key}.objective: an explicit value needs an objective or rewards")
        words = "a monitor" if value.kind == "monitor" else "an explicit value"
        for name, given in (("reference", value.reference), ("anti", value.anti)):
            if given is not None:
                raise ValueError(f"{key}.{name}: {given!r} says nothing of {words}; leave it out")
    if value.objectives is not None:
        if not value.conditioned:
            raise ValueError(f"{key}.objectives: only for a value with neither objective nor rewards")
        for name in value.objectives:
            if name not in objectives:
                known = ", ".join(objectives)
                raise ValueError(f"{key}.objectives: unknown objective {name!r}; known: {known}")
        _names(f"{key}.objectives", value.objectives)
    if value.conditioned and value.reference:
        # PARM's adapters are autoregressive reward models: trained and used without a reference.
        raise ValueError(f"{key}.reference: a value with neither objective nor rewards has no reference; leave it out")
    if value.conditioned and value.anti is not None:
        raise ValueError(f"{key}.anti: {value.anti!r} says nothing of a value with neither objective nor rewards")


def _opposing(manifest: Manifest, value: Value) -> list[str]:
    """Members that ``anti`` may name: language models grown from the same model as ``value``, other than itself."""
    names = []
    for kind, entry in manifest.members():
        if entry.name == value.name or kind not in ("backbone", "policy", "value"):
            continue
        if isinstance(entry, Value) and (entry.kind in HEADED or entry.conditioned):
            continue
        if (getattr(entry, "base", None) or "") == (value.base or ""):
            names.append(entry.name)
    return names


def _check_policies(manifest: Manifest) -> None:
    """Require at most one policy per objective, each for an objective that exists. Raises ValueError, the key
    first."""
    served: list[tuple[str, str]] = []
    for index, policy in enumerate(manifest.policies):
        if policy.objective is not None:
            _objectives_at(f"policies[{index}].objective", (policy.objective, ""), served, manifest.objectives)
            served.append((policy.objective, ""))
        elif policy.rewards is not None and len(policy.rewards) != len(manifest.objectives):
            n = len(manifest.objectives)
            raise ValueError(f"policies[{index}].rewards: {len(policy.rewards)} weights for {n} objectives")


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
