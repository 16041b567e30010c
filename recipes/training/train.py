"""Makes a family: pool, members, values, evaluation, manifest and card.

`python -m ladle.recipes.training.train --config demo --out families/demo`
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ladle.merging.checkpoints.base import default_cache_dir
from ladle.recipes.config import Recipe, load_recipe
from ladle.recipes.model import Base, load_base
from ladle.recipes.prompts import Prompt, load_prompts
from ladle.recipes.rewards import Reward, make_reward, own_reward
from ladle.recipes.soup import load_members
from ladle.recipes.training.card import write_card, write_manifest
from ladle.recipes.training.dpo import train_member
from ladle.recipes.training.evaluate import (
    Answer,
    Setting,
    evaluate,
    front,
    grid_settings,
    merging_sampler,
    summarise,
    write_csv,
)
from ladle.recipes.training.pairs import Scale, select_pairs
from ladle.recipes.training.pool import Candidate, build_pool
from ladle.recipes.training.value import Rated, by_prompt, held_out_topics, train_value
from ladle.recipes.training.value_fit import Fit, fits, predictions, store_fits, stored_fits, write_fits

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
    base: Base
    rewards: tuple[Reward, ...]
    folder: Path

    @classmethod
    def open(cls, recipe: Recipe, folder: Path) -> Workshop:
        """Loads the base and the rewards."""
        base = load_base(recipe.base)
        rewards = tuple(
            own_reward(name, recipe.rewards[name], recipe.folder)
            if name in recipe.rewards
            else make_reward(name, base.count_tokens, recipe.concise_target)
            for name in recipe.objectives
        )
        return cls(recipe, base, rewards, folder)

    def prompts(self, split: str) -> list[Prompt]:
        """The recipe's prompts of one split."""
        prompts = load_prompts(self.recipe.pool.prompts, split)
        return prompts[: self.recipe.pool.limit] if split == "train" else prompts

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
        for name, weights in (recipe.members() | (recipe.oracle_members() if oracles else {})).items():
            key = fingerprint(self.pool_key, scales, recipe.adapter, recipe.dpo, weights.tolist(), recipe.base_name)
            folders[name] = self.folder / f"{name}-{key}"
            if not folders[name].is_dir():
                pairs = select_pairs(pool, scale, weights, pairs=recipe.dpo.pairs, implausible=recipe.pool.implausible)
                train_member(self.base, name, pairs, recipe.adapter, recipe.dpo, folders[name], recipe.base_name)
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

    def fits(self, pool: Sequence[Candidate], scale: Scale, folders: dict[str, Path]) -> dict[str, list[Fit]]:
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

    def judge(self, folders: dict[str, Path], split: str, settings: Sequence[Setting]) -> dict[str, list[Answer]]:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ladle train",
        description="Make a family of adapters from a recipe. A run that was broken off goes on where it stopped.",
        epilog="example: python -m ladle.recipes.training.train --config demo --out families/demo",
    )
    parser.add_argument("--config", default="demo", help="a shipped recipe (demo) or a .toml file")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the family: family.toml, adapters, card, evaluation.csv"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the pool and other intermediate results (default: the user's cache)"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="prompts that are judged")
    parser.add_argument("--beta", type=float, help="train the backbones for this beta, not the recipe's")
    parser.add_argument(
        "--training-seed", type=int, default=0, help="added to the seeds of initialisation and order (default 0)"
    )
    parser.add_argument("--oracles", action="store_true", help="also train the recipe's policies for one preference")
    parser.add_argument("--skip-values", action="store_true", help="train no explicit values; needs --skip-evaluation")
    parser.add_argument(
        "--skip-evaluation", action="store_true", help="stop once the members and the manifest are written"
    )
    parser.add_argument("--json", action="store_true", help="print the evaluation as JSON")
    return parser


def make_family(
    workshop: Workshop, out: Path, split: str | None = "test", *, oracles: bool = False, explicit: bool = True
) -> dict[str, object]:
    """Makes everything a family consists of.

    Args:
        workshop: the recipe and where its intermediate results are kept.
        out: receives family.toml and adapters/, and with a split also evaluation.csv, values.csv and README.md.
        split: the prompts that are judged; None skips the evaluation.
        oracles: also the policies trained for one preference.
        explicit: also the explicit values.

    Returns:
        "settings" (rows of `summarise`), "fronts" (`front` by method) and "values" (`Fit` rows by explicit
        value); empty without a split.
    """
    recipe = workshop.recipe
    pool = workshop.pool()
    scale = Scale.of(pool)
    folders = workshop.members(pool, scale, oracles)
    values = workshop.values(pool, scale) if explicit else {}
    for name, folder in (folders | values).items():
        shutil.copytree(folder, out / "adapters" / name, dirs_exist_ok=True)
    write_manifest(recipe, out)
    if split is None:
        return {}
    settings = grid_settings(recipe, recipe.evaluation.grid)
    answers = workshop.judge(folders, split, settings)
    rows = summarise(settings, answers, recipe.objectives, scale, recipe.evaluation)
    reference = [REFERENCE] * len(recipe.objectives)
    methods = dict.fromkeys(setting.method for setting in settings if setting.preference)
    fronts = {method: front(method, settings, answers, scale, recipe.evaluation, reference) for method in methods}
    write_csv(rows, out / "evaluation.csv")
    value_fits = workshop.fits(pool, scale, values)
    write_fits(value_fits, out / "values.csv")
    prompts = len(workshop.prompts("train"))
    examples = [(label, texts[0]) for label, texts in answers.items()]
    write_card(
        recipe, out, rows, fronts, scale, examples, value_fits, candidates=len(pool), prompts=prompts, split=split
    )
    plain_fits = {name: [dataclasses.asdict(fit) for fit in points] for name, points in value_fits.items()}
    return {"settings": rows, "fronts": fronts, "values": plain_fits}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    arguments = _parser().parse_args(argv)
    started = time.monotonic()
    if arguments.skip_values and not arguments.skip_evaluation:
        raise ValueError("--skip-values: not allowed without --skip-evaluation, which judges the values")
    recipe = load_recipe(arguments.config).varied(arguments.beta, arguments.training_seed)
    workshop = Workshop.open(recipe, arguments.work or default_cache_dir() / "recipes" / recipe.name)
    figures = make_family(
        workshop,
        arguments.out,
        None if arguments.skip_evaluation else arguments.split,
        oracles=arguments.oracles,
        explicit=not arguments.skip_values,
    )
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"{arguments.out}: {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
