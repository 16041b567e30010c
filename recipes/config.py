"""The configuration of a recipe: one TOML file with every hyperparameter and seed; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ladle.merging.exceptions import InputError
from ladle.merging.family.default_sampling import FamilySampling
from ladle.merging.preferences.coefficients import circulant
from ladle.merging.preferences.preference import Preference
from ladle.recipes.routing_config import (
    DeferralConfig,
    ExpertsConfig,
    RouterConfig,
    RoutingEvaluationConfig,
    check_routing,
)
from ladle.recipes.soup_config import SoupConfig, check_soup
from ladle.recipes.trl_config import OnlineConfig, PromptSource, check_algorithm, check_online, prompt_source

_FOLDER = Path(__file__).parent / "configs"
_T = TypeVar("_T")


@dataclass(frozen=True)
class SamplingConfig:
    """How texts are drawn.

    Attributes:
        seed: of the first batch.
        temperature: of the softmax.
        top_k: 0 keeps the whole vocabulary.
        top_p: 1 keeps all of the mass.
        batch_rows: texts that are sampled at once.
    """

    seed: int
    temperature: float
    top_k: int
    top_p: float
    batch_rows: int


@dataclass(frozen=True)
class PoolConfig(SamplingConfig):
    """Candidates per training prompt. Lengths are in tokens.

    Attributes:
        prompts: where they come from.
        plain_samples: answers that are sampled under the default system prompt.
        style_samples: answers that are sampled under each of the styles.
        max_tokens: the most of a sampled answer.
        cut_lengths: from and to where an answer may be cut at the end of a sentence.
        short_lengths: least and greatest length of an answer that is cut far too short.
        implausible: share of the pool, the least likely under the base, that no winner is taken from.
        styles: system messages by name.
        limit: use the first prompts only.
    """

    prompts: str | PromptSource
    plain_samples: int
    style_samples: int
    max_tokens: int
    cut_lengths: tuple[int, int]
    short_lengths: tuple[int, int]
    implausible: float
    styles: dict[str, str]
    limit: int | None = None


@dataclass(frozen=True)
class AdapterConfig:
    """Shape and initialisation of every LoRA member."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class DpoConfig:
    """Training of one member by direct preference optimisation (see `trl_dpo.py`)."""

    seed: int
    beta: float
    winner_nll: float
    pairs: int
    prompts_per_step: int
    epochs: int
    learning_rate: float
    warmup: float
    max_gradient: float


@dataclass(frozen=True)
class ValueConfig:
    """Training of one explicit value (see `value.py`).

    `td_lambda` 1 regresses the final reward on every prefix; below 1 the targets are lambda-returns. `held_out` counts
    the topics that are kept from training to measure the values on; `answers` is how many of a prompt's candidates a
    pass over the prompts sees.
    """

    seed: int
    td_lambda: float
    held_out: int
    answers: int
    prompts_per_step: int
    epochs: int
    learning_rate: float
    head_learning_rate: float
    warmup: float
    max_gradient: float


@dataclass(frozen=True)
class ConditionedConfig:
    """Training of the value that takes the whole preference, a PBLoRA (see `conditioned.py`).

    Attributes:
        seed: of the initialisation and of all draws.
        fixed_rank: r1, of the part that is the same for every preference.
        rank: r2, of the part that depends on the preference.
        alpha: the scale is alpha / r2.
        targets: linear modules, by the end of their names.
        concentration: of the Dirichlet distribution that preferences are drawn from.
        beta, winner_nll, pairs, prompts_per_step, epochs, warmup, max_gradient: as in `DpoConfig`.
        learning_rate: of A and B.
        mixing_learning_rate: of W1 and M, which start at 0.
    """

    seed: int
    fixed_rank: int
    rank: int
    alpha: int
    targets: tuple[str, ...]
    concentration: float
    beta: float
    winner_nll: float
    pairs: int
    prompts_per_step: int
    epochs: int
    learning_rate: float
    mixing_learning_rate: float
    warmup: float
    max_gradient: float


@dataclass(frozen=True)
class AmateurConfig:
    """A tiny model with the base's tokens, distilled from the base (see `amateur.py`).

    Attributes:
        seed: of the initialisation, the order and the held-out answers.
        hidden, layers, heads, intermediate: its shape.
        top: most likely tokens that the base's distribution is known at; the rest is one more outcome.
        turns: answers, each behind its prompt, that are laid end to end, so that it learns to read on after the first.
        batch: rows of so many turns a step.
        epochs: passes over the answers.
        held_out: answers a validation prompt that it is measured on.
        bootstrap: draws of its intervals.
    """

    seed: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    top: int
    turns: int
    batch: int
    epochs: int
    learning_rate: float
    warmup: float
    max_gradient: float
    held_out: int
    bootstrap: int


@dataclass(frozen=True)
class EvaluationConfig(SamplingConfig):
    """The sweep over preferences on held-out prompts."""

    samples: int
    grid: int
    bootstrap: int


@dataclass(frozen=True)
class Recipe:
    """A whole configuration file."""

    name: str
    base: str
    base_name: str
    objectives: tuple[str, ...]
    concise_target: int
    soup: SoupConfig
    pool: PoolConfig
    adapter: AdapterConfig
    dpo: DpoConfig
    value_adapter: AdapterConfig
    value: ValueConfig
    evaluation: EvaluationConfig
    presets: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    oracles: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    expert_adapter: AdapterConfig | None = None
    experts: ExpertsConfig | None = None
    router: RouterConfig | None = None
    routing_evaluation: RoutingEvaluationConfig | None = None
    deferral: DeferralConfig | None = None
    conditioned: ConditionedConfig | None = None
    amateur: AmateurConfig | None = None
    sampling: FamilySampling | None = None
    chat_template: Path | None = None
    rewards: dict[str, str] = dataclasses.field(default_factory=dict)
    algorithm: str = "dpo"
    grpo: OnlineConfig | None = None
    rloo: OnlineConfig | None = None
    trl: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path = _FOLDER

    @property
    def online(self) -> OnlineConfig | None:
        """The table of the algorithm where that is a policy gradient; None for DPO."""
        return {"grpo": self.grpo, "rloo": self.rloo}.get(self.algorithm)

    def matrix(self) -> np.ndarray:
        """B, float64 [n, n], one row a backbone (Bone Soup, arXiv 2502.10762)."""
        if self.soup.matrix is not None:
            return np.array(self.soup.matrix, dtype=np.float64)
        assert self.soup.beta is not None, "load_recipe refuses a recipe with neither"
        return circulant(self.soup.beta, len(self.objectives))

    def values(self) -> dict[str, int]:
        """The objective, as its index, that each explicit value predicts, by name."""
        return {f"explicit-{objective}": i for i, objective in enumerate(self.objectives)}

    def members(self) -> dict[str, np.ndarray]:
        """Reward weights, float64 [n], of each member by name: backbones (rows of B), then single-objective policies
        (unit rows)."""
        rows = self.matrix()
        backbones = {f"bone-{objective}": rows[i] for i, objective in enumerate(self.objectives)}
        policies = {f"policy-{objective}": np.eye(len(rows))[i] for i, objective in enumerate(self.objectives)}
        return backbones | policies

    def oracle_members(self) -> dict[str, np.ndarray]:
        """Reward weights, float64 [n], sum 1, of the policies trained for one preference, by name."""
        preferences = {name: Preference.of(weights, self.objectives) for name, weights in self.oracles.items()}
        return {f"oracle-{name}": preference.vector() for name, preference in preferences.items()}

    def varied(self, beta: float | None = None, seed: int = 0) -> Recipe:
        """This recipe with another beta, or trained from another seed: ``seed`` is added to those of initialisation
        and order. Pool and evaluation stay, so that their results can be compared. Raises ValueError: a beta that is
        not allowed."""
        if beta is not None and self.soup.matrix is not None:
            raise ValueError(f"--beta: {beta!r} is not allowed; the recipe's soup.matrix says all that a beta would")

        def moved(config: OnlineConfig | None) -> OnlineConfig | None:
            return None if config is None else dataclasses.replace(config, seed=config.seed + seed)

        changed = dataclasses.replace(
            self,
            soup=dataclasses.replace(self.soup, beta=self.soup.beta if beta is None else beta),
            adapter=dataclasses.replace(self.adapter, seed=self.adapter.seed + seed),
            dpo=dataclasses.replace(self.dpo, seed=self.dpo.seed + seed),
            grpo=moved(self.grpo),
            rloo=moved(self.rloo),
            value_adapter=dataclasses.replace(self.value_adapter, seed=self.value_adapter.seed + seed),
            value=dataclasses.replace(self.value, seed=self.value.seed + seed),
        )
        check_soup(changed.soup, len(changed.objectives), "--beta")
        return changed


def _table(path: Path) -> dict[str, Any]:
    """The tables of a file, over those of the shipped recipe that its ``extends`` names."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str) or not (_FOLDER / f"{parent}.toml").is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.toml")))
        raise ValueError(f"{path}: extends: {parent!r} is not allowed; allowed: {known}")
    below = _table(_FOLDER / f"{parent}.toml")
    if "matrix" in table.get("soup", {}):
        below["soup"].pop("beta", None)  # the matrix stands in its place
    if "base" in table:
        below.pop("base_name", None)
    return _over(below, table)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` where it says something, else ``below``, table by table; names that people choose are not mixed."""
    merged = {**below, **above}
    for name in below.keys() & above.keys() - {"styles", "presets"}:
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            merged[name] = _over(below[name], above[name])
    return merged


def _frozen(value: Any) -> Any:
    """Lists, and those in them, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _build(kind: type[_T], table: dict[str, Any], where: str) -> _T:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - set(fields)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(fields))}")
    missing = [
        name
        for name, field in fields.items()
        if name not in table and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing")
    return kind(**{key: _frozen(value) for key, value in table.items()})


def load_recipe(spec: str) -> Recipe:
    """Reads a recipe: the name of a shipped one ("demo") or the path of a .toml file.

    Raises:
        ValueError: a key is unknown or missing, or a value is not allowed.
        FileNotFoundError: there is no such file.
    """
    path = Path(spec) if spec.endswith(".toml") else _FOLDER / f"{spec}.toml"
    table = _table(path)
    check_algorithm(table.get("algorithm", "dpo"), table, str(path))
    if "prompts" in table.get("pool", {}):
        table["pool"]["prompts"] = prompt_source(table["pool"]["prompts"], f"{path}: pool.prompts")
    sections: dict[str, type] = {
        "soup": SoupConfig,
        "pool": PoolConfig,
        "adapter": AdapterConfig,
        "dpo": DpoConfig,
        "value_adapter": AdapterConfig,
        "value": ValueConfig,
        "evaluation": EvaluationConfig,
    }
    for section, kind in sections.items():
        table[section] = _build(kind, table.get(section, {}), f"{path}: [{section}]")
    routing: dict[str, type] = {
        "expert_adapter": AdapterConfig,
        "experts": ExpertsConfig,
        "router": RouterConfig,
        "routing_evaluation": RoutingEvaluationConfig,
    }
    if any(section in table for section in routing):  # a family may have no experts, but not half of what makes them
        for section, kind in routing.items():
            table[section] = _build(kind, table.get(section, {}), f"{path}: [{section}]")
    for section in ("grpo", "rloo"):
        if section in table:
            table[section] = _build(OnlineConfig, table[section], f"{path}: [{section}]")
            check_online(table[section], f"{path}: {section}")
    further = {"deferral": DeferralConfig, "conditioned": ConditionedConfig, "amateur": AmateurConfig}
    for section, kind in further.items():
        if section in table:
            table[section] = _build(kind, table[section], f"{path}: [{section}]")
    if "sampling" in table:
        table["sampling"] = FamilySampling.model_validate(table["sampling"])
    table["folder"] = path.parent
    if "base" in table:
        table.setdefault("base_name", table["base"])
    if "base" in table and path.parent != _FOLDER and (path.parent / table["base"]).exists():
        table["base"] = str((path.parent / table["base"]).resolve())  # family.toml lies elsewhere
    if "chat_template" in table:
        table["chat_template"] = path.parent / table["chat_template"]
    for name in table.get("rewards", {}):
        if name not in table.get("objectives", ()):
            raise ValueError(f"{path}: rewards: {name!r} is not allowed; allowed: names of objectives")
    recipe = _build(Recipe, table, str(path))
    if recipe.experts is not None and recipe.router is not None:
        check_routing(recipe.experts, recipe.router, str(path))
    if len(recipe.objectives) < 2:
        raise ValueError(f"{path}: objectives: {list(recipe.objectives)!r} is not allowed; allowed: at least two")
    check_soup(recipe.soup, len(recipe.objectives), f"{path}: soup.beta" if recipe.soup.beta is not None else str(path))
    try:
        recipe.oracle_members()
    except InputError as error:
        raise ValueError(f"{path}: oracles: {error}") from None
    if not 0.0 <= recipe.value.td_lambda <= 1.0:
        raise ValueError(f"{path}: value.td_lambda: {recipe.value.td_lambda!r} is not allowed; allowed: 0 to 1")
    for key in ("held_out", "answers", "prompts_per_step", "epochs"):
        if getattr(recipe.value, key) < 1:
            raise ValueError(f"{path}: value.{key}: {getattr(recipe.value, key)!r} is not allowed; allowed: 1 or more")
    return recipe
