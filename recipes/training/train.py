"""Makes a family: pool, members, values, evaluation, manifest and card. `ladle train` runs it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ladle.recipes.base_model import LoadedBase, load_base
from ladle.recipes.config import Recipe
from ladle.recipes.processes import on_main, processes
from ladle.recipes.prompt_list import SPLITS, ListedPrompt
from ladle.recipes.prompt_sources import read_prompts
from ladle.recipes.reward_sources import reward_of
from ladle.recipes.rewards import Reward
from ladle.recipes.soup import load_members
from ladle.recipes.training.candidate_pool import Candidate, build_pool
from ladle.recipes.training.card import CardFacts, Measured, write_card
from ladle.recipes.training.evaluate import (
    Mixture,
    SampledAnswer,
    evaluate,
    front,
    grid_settings,
    merging_sampler,
    summarise,
    write_csv,
)
from ladle.recipes.training.family_manifest import write_manifest
from ladle.recipes.training.pairs import Scale, select_pairs
from ladle.recipes.training.trl_dpo import dpo_arguments, train_by_dpo
from ladle.recipes.training.trl_online import online_arguments, train_online
from ladle.recipes.training.trl_run import TrainingJob
from ladle.recipes.training.value import Rated, by_prompt, held_out_topics, train_value
from ladle.recipes.training.value_fit import ValueFit, fits, predictions, store_fits, stored_fits, write_fits

REFERENCE = -1.0  # standardised reward; where the hypervolume is measured from, for every objective


def fingerprint(*parts: object) -> str:
    """Ten hexadecimal digits that change when any of the parts does: names intermediate results, so that a stale one
    is not reused."""
    plain = [
        dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part
        for part in parts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


@dataclasses.dataclass(frozen=True)
class Workshop:
    """One recipe being made: what is loaded, and where intermediate results are kept."""

    recipe: Recipe
    base: LoadedBase
    rewards: tuple[Reward, ...]
    folder: Path

    @classmethod
    def open(cls, recipe: Recipe, folder: Path, device: str = "cpu", threads: int = 1) -> Workshop:
        """Loads the prompts, the base and the rewards, and tries each of these once.

        Args:
            recipe: what is made.
            folder: where intermediate results are kept.
            device: "cpu" or "cuda".
            threads: of torch, on the CPU.

        Raises:
            ValueError: a prompt or reward source that is not allowed, or a reward that fails.
        """
        prompts = read_prompts(recipe.pool.prompts, recipe.folder)
        columns = {prompt.text: prompt.columns for prompt in prompts}
        base = load_base(recipe.base, processes(device).device, threads)
        rewards = tuple(
            reward_of(name, recipe.rewards.get(name), recipe.folder, base.count_tokens, recipe.concise_target, columns)
            for name in recipe.objectives
        )
        for reward in rewards:
            reward(prompts[0].text, "Yes.")  # what cannot be used is said before anything is sampled
        return cls(recipe, base, rewards, folder)

    @cached_property
    def _prompts(self) -> list[ListedPrompt]:
        return read_prompts(self.recipe.pool.prompts, self.recipe.folder)

    def prompts(self, split: str) -> list[ListedPrompt]:
        """The recipe's prompts of one split. Raises ValueError: an unknown one."""
        if split not in SPLITS:
            raise ValueError(f"split: {split!r} is not allowed; allowed: {', '.join(SPLITS)}")
        prompts = [prompt for prompt in self._prompts if prompt.split == split]
        return prompts[: self.recipe.pool.limit] if split == "train" else prompts

    def check(self, split: str | None, *, explicit: bool) -> None:
        """Refuses what would only be noticed after hours: a split without prompts, values that none are left for, what
        TRL does not take.

        Args:
            split: the prompts that will be judged; None for none.
            explicit: whether explicit values are trained.

        Raises:
            ValueError: it would fail.
        """
        recipe, prompts = self.recipe, self.prompts("train")
        for name in ("train", *([split] if split else [])):
            if not self.prompts(name):
                raise ValueError(f"pool.prompts: {recipe.pool.prompts!r} has no prompts in the split {name!r}")
        if explicit:
            held_out_topics(prompts, recipe.value)
        job = TrainingJob("check", self.folder / "check", recipe.base_name, recipe.adapter)
        if recipe.online is None:
            dpo_arguments(recipe.dpo, recipe.trl, job, len(prompts))
        else:
            tokens = recipe.pool.max_tokens
            online_arguments(recipe.algorithm, recipe.online, recipe.trl, job, len(prompts), tokens)

    def scale(self, pool: Sequence[Candidate]) -> Scale:
        """What standardises the rewards. Raises ValueError: a reward is the same for the whole pool."""
        return Scale.of(pool, self.recipe.objectives)

    @property
    def pool_key(self) -> str:
        """Fingerprint of what the texts in the pool depend on; rewards are computed again whenever they are read."""
        prompts = [prompt.text for prompt in self.prompts("train")]
        return fingerprint(self.recipe.base, self.recipe.pool, prompts)

    def pool(self) -> list[Candidate]:
        """Samples the pool, or reads what is already there."""
        return build_pool(
            self.base,
            self.prompts("train"),
            self.rewards,
            self.recipe.pool,
            self.folder / f"pool-{self.pool_key}.jsonl",
        )

    def members(self, pool: Sequence[Candidate], scale: Scale, oracles: bool = False) -> dict[str, Path]:
        """Trains every member that is not finished, and the oracles if asked for; PEFT folders by name."""
        recipe = self.recipe
        folders = {}
        scales = [*scale.mean.tolist(), *scale.std.tolist()]
        how = [recipe.algorithm, recipe.online or recipe.dpo, recipe.trl]
        for name, weights in (recipe.members() | (recipe.oracle_members() if oracles else {})).items():
            key = fingerprint(self.pool_key, scales, recipe.adapter, *how, weights.tolist(), recipe.base_name)
            folders[name] = self.folder / f"{name}-{key}"
            if folders[name].is_dir():
                continue
            job = TrainingJob(name, folders[name], recipe.base_name, recipe.adapter)
            if recipe.online is None:
                pairs = select_pairs(pool, scale, weights, pairs=recipe.dpo.pairs, implausible=recipe.pool.implausible)
                train_by_dpo(self.base, job, pairs, recipe.dpo, recipe.trl)
            else:
                asked = [prompt.text for prompt in self.prompts("train")]
                train_online(
                    self.base, job, recipe.algorithm, asked, self.rewards, weights, scale, recipe.online, recipe.trl,
                    recipe.pool.max_tokens,
                )  # fmt: skip
        return folders

    def rated(self, pool: Sequence[Candidate], scale: Scale, objective: int) -> tuple[list[Rated], list[Rated]]:
        """The pool as one objective's value sees it: prompts to train on, and prompts of topics that it never sees."""
        prompts = self.prompts("train")
        topics = held_out_topics(prompts, self.recipe.value)
        held = {prompt.text for prompt in prompts if prompt.topic in topics}
        rated = by_prompt(pool, scale.z([candidate.rewards for candidate in pool])[:, objective])
        return [r for r in rated if r.prompt not in held], [r for r in rated if r.prompt in held]

    def values(self, pool: Sequence[Candidate], scale: Scale) -> dict[str, Path]:
        """Trains every explicit value that is not finished; PEFT folders with a head by name."""
        recipe = self.recipe
        folders = {}
        for name, i in recipe.values().items():
            scales = [recipe.objectives[i], float(scale.mean[i]), float(scale.std[i])]
            key = fingerprint(self.pool_key, scales, recipe.value_adapter, recipe.value, recipe.base_name)
            folders[name] = self.folder / f"{name}-{key}"
            if not folders[name].is_dir():
                rated, _ = self.rated(pool, scale, i)
                train_value(self.base, name, rated, recipe.value_adapter, recipe.value, folders[name], recipe.base_name)
        return folders

    def fits(self, pool: Sequence[Candidate], scale: Scale, folders: dict[str, Path]) -> dict[str, list[ValueFit]]:
        """How well each explicit value predicts rewards on the topics it never saw; what is measured is read back."""
        recipe, config = self.recipe, self.recipe.evaluation
        results = {}
        for name, i in recipe.values().items():
            path = self.folder / f"fits-{fingerprint(folders[name].name, config.bootstrap, config.seed)}.json"
            if not path.exists():
                _, held = self.rated(pool, scale, i)
                predicted = predictions(self.base, folders[name], held)
                value_fits = fits(recipe.objectives[i], predicted, held, draws=config.bootstrap, seed=config.seed)
                store_fits(value_fits, path)
            results[name] = stored_fits(path)
        return results

    def judge(
        self, folders: dict[str, Path], split: str, settings: Sequence[Mixture]
    ) -> dict[str, list[SampledAnswer]]:
        """Answers of `settings` to the prompts of a split, by label; those already judged are read back."""
        config, prompts = self.recipe.evaluation, self.prompts(split)
        members = sorted(folder.name for folder in folders.values())
        key = fingerprint(members, config, split, [prompt.text for prompt in prompts])
        return evaluate(
            self.base,
            merging_sampler(self.base, load_members(self.base, folders), config, self.recipe.pool.max_tokens),
            settings,
            prompts,
            self.rewards,
            self.folder / f"evaluation-{key}.jsonl",
        )


def make_family(
    workshop: Workshop, out: Path, split: str | None = "test", *, oracles: bool = False, explicit: bool = True
) -> dict[str, object]:
    """Makes everything a family consists of, together with the other processes of the run.

    Args:
        workshop: the recipe and where its intermediate results are kept.
        out: receives family.toml and adapters/, and with a split also evaluation.csv, values.csv and README.md.
        split: the prompts that are judged; None skips the evaluation.
        oracles: also the policies trained for one preference.
        explicit: also the explicit values.

    Returns:
        "settings" (rows of `summarise`), "fronts" (`front` by method) and "values" (`Fit` rows by explicit
        value); empty without a split, and in all processes but the first.

    Raises:
        ValueError: something of the recipe cannot be used; most of it is told before anything is sampled.
    """
    workshop.check(split, explicit=explicit)
    sampled: list[list[Candidate]] = []
    on_main(lambda: sampled.append(workshop.pool()))
    pool = sampled[0] if sampled else workshop.pool()  # the others read what the first process left
    scale = workshop.scale(pool)
    folders = workshop.members(pool, scale, oracles)
    measured: dict[str, object] = {}
    on_main(lambda: measured.update(_finish(workshop, out, split, pool, scale, folders, explicit)))
    return measured


def _finish(
    workshop: Workshop,
    out: Path,
    split: str | None,
    pool: Sequence[Candidate],
    scale: Scale,
    folders: dict[str, Path],
    explicit: bool,
) -> dict[str, object]:
    """All that is done once the members are there."""
    recipe = workshop.recipe
    values = workshop.values(pool, scale) if explicit else {}
    for name, folder in (folders | values).items():
        shutil.copytree(folder, out / "adapters" / name, dirs_exist_ok=True)
    write_manifest(recipe, out)
    facts = CardFacts(recipe, scale, len(pool), len(workshop.prompts("train")), explicit)
    if split is None:
        write_card(facts, out)
        return {}
    settings = grid_settings(recipe, recipe.evaluation.grid)
    answers = workshop.judge(folders, split, settings)
    rows = summarise(settings, answers, recipe.objectives, scale, recipe.evaluation)
    reference = [REFERENCE] * len(recipe.objectives)
    methods = dict.fromkeys(setting.method for setting in settings if setting.preference)
    fronts = {method: front(method, settings, answers, scale, recipe.evaluation, reference) for method in methods}
    write_csv(rows, out / "evaluation.csv")
    value_fits = workshop.fits(pool, scale, values)
    if value_fits:
        write_fits(value_fits, out / "values.csv")
    examples = [(label, texts[0]) for label, texts in answers.items()]
    write_card(facts, out, Measured(rows, fronts, examples, value_fits, split))
    plain_fits = {name: [dataclasses.asdict(fit) for fit in points] for name, points in value_fits.items()}
    return {"settings": rows, "fronts": fronts, "values": plain_fits}
