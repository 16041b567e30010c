"""Makes domain experts and a router for a family: adapters, the router's head, and their tables in family.toml.

`python -m ladle.recipes.experts.route --config demo --out families/demo`
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ladle.recipes.base_model import LoadedBase, load_base
from ladle.recipes.config import AdapterConfig, Recipe
from ladle.recipes.domains.domains import DomainQuestion, questions
from ladle.recipes.experts.expert import encode, train_expert
from ladle.recipes.experts.expert_views import seen_by
from ladle.recipes.experts.router_pairs import pairs_of, stored_answers
from ladle.recipes.experts.router_training import SeenPair, train_router_cdpo, train_router_sft
from ladle.recipes.routing_config import ExpertsConfig, RouterConfig
from ladle.recipes.scoring import Encoded
from ladle.recipes.soup import load_members
from ladle.recipes.training.family_manifest import write_manifest
from ladle.recipes.training.recipe_arguments import recipe_arguments, recipe_parser
from ladle.recipes.training.train import fingerprint

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class RouteWorkshop:
    """Experts and a router being made: what is loaded, and where intermediate results are kept."""

    recipe: Recipe
    base: LoadedBase
    folder: Path

    @property
    def adapter(self) -> AdapterConfig:
        return needed(self.recipe.expert_adapter, "expert_adapter")

    @property
    def experts(self) -> ExpertsConfig:
        return needed(self.recipe.experts, "experts")

    @property
    def router(self) -> RouterConfig:
        return needed(self.recipe.router, "router")

    def expert_folders(self) -> dict[str, Path]:
        """Where each expert is kept, by its name `expert-DOMAIN`."""
        config, folders = self.experts, {}
        for domain, count in config.samples.items():
            settings = dataclasses.replace(config, samples={domain: count})
            taught = questions(domain, "train", count, config.seed)
            key = fingerprint(self.recipe.base, self.recipe.base_name, self.adapter, settings, _texts(taught))
            folders[f"expert-{domain}"] = self.folder / f"expert-{domain}-{key}"
        return folders

    def train_experts(self, only: Sequence[str] = ()) -> dict[str, Path]:
        """Trains every expert that is not finished; PEFT folders by name.

        Args:
            only: domains; none stands for all of them.
        """
        config, folders = self.experts, self.expert_folders()
        for domain, count in config.samples.items():
            name = f"expert-{domain}"
            if folders[name].is_dir() or (only and domain not in only):
                continue
            taught = questions(domain, "train", count, config.seed)
            train_expert(self.base, name, taught, self.adapter, config, folders[name], self.recipe.base_name)
        return folders

    def train_router(self, folders: Mapping[str, Path]) -> Path:
        """Trains the router where it is not finished; its PEFT folder, with the head.

        Args:
            folders: of the experts, in the order of the head's rows.
        """
        config, name = self.router, self.recipe.base_name
        domains = list(self.experts.samples)
        drawn = {domain: questions(domain, "train", config.samples + config.pairs, config.seed) for domain in domains}
        taught = [question for domain in domains for question in drawn[domain][: config.samples]]
        asked = [question for domain in domains for question in drawn[domain][config.samples :]]
        key = fingerprint([folder.name for folder in folders.values()], self.adapter, config, _texts(taught + asked))
        router = self.folder / f"router-{key}"
        if router.is_dir():
            return router
        members = load_members(self.base, folders)
        start = folders[f"expert-{config.init}"]

        items = [encode(self.base, question) for question in taught]
        samples = seen_by(self.base, members, items, config.batch, self._views(members, folders, "taught", items))
        first = self.folder / f"router-sft-{self._first_stage(folders, items)}"
        if not first.is_dir():
            train_router_sft(self.base, samples, self.adapter, config, start, first, name)

        answers = {
            expert: stored_answers(
                self.base,
                {expert: member},
                {expert: 1.0},
                asked,
                config.max_tokens,
                config.batch_rows,
                self.folder / f"answers-{fingerprint(folders[expert].name, _texts(asked), config.max_tokens)}.jsonl",
            )
            for expert, member in members.items()
        }
        training_pairs = pairs_of(self.base, asked, answers, config.seed)
        items = [answer for pair in training_pairs for answer in pair]
        seen = seen_by(self.base, members, items, config.batch, self._views(members, folders, "pairs", items))
        pairs = [SeenPair(right, wrong) for right, wrong in zip(seen[::2], seen[1::2], strict=True)]
        picked = np.random.default_rng(config.seed).permutation(len(samples))[: config.pair_samples * len(domains)]
        train_router_cdpo(self.base, [samples[i] for i in picked], pairs, self.adapter, config, first, router, name)
        return router

    def _first_stage(self, folders: Mapping[str, Path], items: Sequence[Encoded]) -> str:
        """Fingerprint of what the first stage depends on: a change of the second one alone does not repeat it."""
        config = self.router
        settings: list[object] = [
            config.batch,
            config.learning_rate,
            config.head_learning_rate,
            config.expert_loss,
            config.warmup,
        ]
        settings += [config.max_gradient, config.init, config.seed]
        names = [folder.name for folder in folders.values()]
        return fingerprint(names, self.adapter, settings, [dataclasses.asdict(item) for item in items])

    def _views(
        self, members: Mapping[str, object], folders: Mapping[str, Path], kind: str, items: Sequence[Encoded]
    ) -> dict[str, Path]:
        """The file of each expert's view of some answers."""
        texts = [dataclasses.asdict(item) for item in items]
        return {name: self.folder / f"{kind}-{fingerprint(folders[name].name, texts)}.jsonl" for name in members}


def make_routing(workshop: RouteWorkshop, out: Path) -> dict[str, Path]:
    """Makes experts and router, copies them to `out/adapters` and writes `out/family.toml`.

    Returns:
        the adapters' folders in `out` by name, the router last.
    """
    folders = workshop.train_experts()
    folders["router"] = workshop.train_router(folders)
    finished = {}
    for name, folder in folders.items():
        finished[name] = out / "adapters" / name
        shutil.copytree(folder, finished[name], dirs_exist_ok=True)
    write_manifest(workshop.recipe, out)
    return finished


def needed(table: _T | None, name: str) -> _T:
    """A table of the recipe. Raises ValueError where it has none."""
    if table is None:
        raise ValueError(f"[{name}]: the recipe has no such table; experts and a router need it")
    return table


def _texts(taught: Sequence[DomainQuestion]) -> list[str]:
    return [f"{question.task.prompt}\n{question.task.answer}" for question in taught]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    description = (
        "Make domain experts and a router from a recipe. A run that was broken off goes on where it stopped: what the "
        "work folder has is not made again."
    )
    parser = recipe_parser("experts.route", description, out=": adapters and family.toml")
    parser.add_argument("--json", action="store_true", help="print the adapters' folders as JSON")
    started = time.monotonic()
    arguments, recipe = recipe_arguments(parser, argv, "experts", "router")
    made = make_routing(RouteWorkshop(recipe, load_base(recipe.base), arguments.work), arguments.out)
    if arguments.json:
        print(json.dumps({name: str(path) for name, path in made.items()}))
    else:
        print(f"{arguments.out}: {', '.join(made)} in {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
