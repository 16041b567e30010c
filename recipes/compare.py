"""Judging guided decoding: MAGE's variants beside Bone Soup and the base, all sampled through the server's engine.

One row a method and preference, on held-out prompts, with the same seeds for every row. Strengths are to be chosen on
the validation split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.base import default_cache_dir
from ladle.merging.family import Family, load_family
from ladle.recipes.config import EvaluationConfig, Recipe, load_recipe
from ladle.recipes.evaluate import Sampler, Setting, evaluate, summarise, write_csv
from ladle.recipes.model import Base
from ladle.recipes.pairs import Scale
from ladle.recipes.prompts import Prompt
from ladle.recipes.train import Workshop, fingerprint
from ladle.server.engine.config import EngineConfig
from ladle.server.engine.engine import Engine
from ladle.server.engine.request import GenerationRequest, StepOutput
from ladle.server.engine.sampling import SamplingParams

VALUES = ("implicit", "explicit", "both")
_SEQUENCES = 16  # at once; a guided one has up to four lanes


def guided_settings(recipe: Recipe, points: int, implicit: float, explicit: float) -> list[Setting]:
    """The base, then Bone Soup and MAGE with implicit, explicit and both kinds of value over `points` preferences of
    the first two objectives.

    Args:
        implicit, explicit: strengths of the two kinds of value.
    """
    strengths = {"implicit": implicit, "explicit": explicit, "both": {"implicit": implicit, "explicit": explicit}}
    methods: dict[str, dict[str, object]] = {"bone_soup": {"method": "bone_soup"}}
    for value in VALUES:
        methods[f"mage {value}"] = {"method": "mage", "value": value, "strength": strengths[value]}
    settings = [Setting("base", (), {}, {"method": "base"})]
    for name, options in methods.items():
        for k in range(points):
            share = 1.0 - k / (points - 1)
            preference = dict(zip(recipe.objectives, (share, 1.0 - share), strict=False))
            weights = tuple(preference.get(objective, 0.0) for objective in recipe.objectives)
            settings.append(Setting(name, weights, {}, {**options, "preference": preference}))
    return settings


def engine_sampler(base: Base, family: Family, config: EvaluationConfig, max_tokens: int) -> Sampler:
    """Samples settings as the server would, in float32 on the CPU, by their `steering`.

    The draws of an answer depend on the seed of its prompt and number alone, which are the same for all settings.
    """
    options = EngineConfig(
        device="cpu",
        dtype="float32",
        max_sequences=_SEQUENCES,
        max_lanes=4 * _SEQUENCES,
        max_queue=1 << 20,
    )
    engine = Engine(family, options)

    def answers(setting: Setting, prompts: Sequence[Prompt]) -> list[list[list[int]]]:
        plan = resolve(family, Steering.parse(setting.steering))
        tokens: list[list[int]] = [[] for _ in range(len(prompts) * config.samples)]
        left = len(tokens)

        def take(outputs: list[StepOutput]) -> None:
            nonlocal left
            for output in outputs:
                if output.error is not None or output.finish_reason in ("abort", "error"):
                    raise RuntimeError(f"{setting.label}: {output.error or output.finish_reason}")
                tokens[int(output.request_id)].append(output.token)
                left -= output.finish_reason is not None

        for index in range(len(tokens)):
            sampling = SamplingParams(
                max_tokens=max_tokens,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                seed=config.seed * (1 << 20) + index,
            )
            ids = tuple(base.prompt_ids(prompts[index // config.samples].text))
            engine.submit(GenerationRequest(str(index), ids, plan, sampling), take)
        while left:
            engine.step()
        return [tokens[start : start + config.samples] for start in range(0, len(tokens), config.samples)]

    return answers


def compare(workshop: Workshop, folder: Path, settings: Sequence[Setting], split: str) -> list[dict[str, object]]:
    """Rows of `summarise` for settings with a `steering`; those already judged are read back.

    Args:
        workshop: the recipe that the family was made by; its pool standardises the rewards.
        folder: the family.
        settings: of `guided_settings`.
        split: the prompts that are judged.
    """
    recipe, prompts = workshop.recipe, workshop.prompts(split)
    weights = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("adapters/*/*.safetensors"))
    ]
    manifest = (folder / "family.toml").read_text(encoding="utf-8")
    key = fingerprint("engine", manifest, weights, recipe.evaluation, split, [prompt.text for prompt in prompts])
    sampler = engine_sampler(workshop.base, load_family(str(folder)), recipe.evaluation, recipe.pool.max_tokens)
    path = workshop.folder / f"comparison-{key}.jsonl"
    answers = evaluate(workshop.base, sampler, settings, prompts, workshop.rewards, path)
    return summarise(settings, answers, recipe.objectives, Scale.of(workshop.pool()), recipe.evaluation)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line a setting, or writes a .csv file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="ladle compare",
        description=__doc__,
        epilog="example: python -m ladle.recipes.compare --config demo --family families/demo --split validation",
    )
    parser.add_argument("--config", default="demo", help="a shipped recipe (demo) or a .toml file")
    parser.add_argument("--family", type=Path, required=True, help="folder of the family that the recipe made")
    parser.add_argument("--work", type=Path, help="folder of intermediate results (default: the user's cache)")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="prompts that are judged")
    parser.add_argument("--points", type=int, help="preferences a method, at least 2 (default: the recipe's grid)")
    parser.add_argument("--implicit", type=float, default=1.0, help="strength of implicit values (1)")
    parser.add_argument("--explicit", type=float, default=1.0, help="strength of explicit values (1)")
    parser.add_argument("--csv", type=Path, help="write the rows there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.config)
    points = recipe.evaluation.grid if arguments.points is None else arguments.points
    if points < 2:
        parser.error(f"--points: {points} is not allowed; allowed: 2 or more")
    workshop = Workshop.open(recipe, arguments.work or default_cache_dir() / "recipes" / recipe.name)
    settings = guided_settings(recipe, points, arguments.implicit, arguments.explicit)
    rows = compare(workshop, arguments.family, settings, arguments.split)
    if arguments.csv:
        write_csv(rows, arguments.csv)
    if arguments.json:
        print(json.dumps(rows))
    elif not arguments.csv:
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items() if not key.endswith(("_low", "_high"))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
