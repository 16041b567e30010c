"""Are members that were trained anew worth what the old ones are? Members of several families, beside each other.

python -m ladle.recipes.studies.member_study demo kept=families/demo new=FOLDER --out STUDY
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ladle.recipes.base_model import load_base
from ladle.recipes.config import EvaluationConfig, load_recipe
from ladle.recipes.prompt_sources import read_prompts
from ladle.recipes.reward_sources import reward_of
from ladle.recipes.soup import load_members
from ladle.recipes.text_metrics import bootstrap_mean
from ladle.recipes.training.evaluate import Mixture, SampledAnswer, evaluate, merging_sampler, write_csv

app = typer.Typer(add_completion=False)
BASE = "base"


@app.command()
def study(
    recipe: Annotated[str, typer.Argument(help="The recipe that the families were made by.")],
    families: Annotated[list[str], typer.Argument(help="NAME=FOLDER of each; the first is what others are held to.")],
    out: Annotated[Path, typer.Option(help="Folder that receives members.csv.")],
    work: Annotated[Path, typer.Option(help="Folder for answers; those that are there are not sampled again.")],
    split: Annotated[str, typer.Option(help="Prompts that are judged: test or validation.")] = "test",
    threads: Annotated[int, typer.Option(min=1, help="Number of threads on the CPU.")] = 1,
) -> None:
    """Answers of the base and of every member of the recipe that all families have, with the recipe's evaluation: the
    same prompts, draws and seeds for all."""
    made = load_recipe(recipe)
    folders = dict(_named(family) for family in families)
    shared = [name for name in made.members() if all((adapters / name).is_dir() for adapters in folders.values())]
    if not shared:
        raise typer.BadParameter(f"no member of the recipe is in all of {', '.join(map(str, folders.values()))}")
    prompts = [prompt for prompt in read_prompts(made.pool.prompts, made.folder) if prompt.split == split]
    if not prompts:
        raise typer.BadParameter(f"the recipe has no prompts in the split {split!r}")
    base = load_base(made.base, "cpu", threads)
    rewards = tuple(
        reward_of(name, made.rewards.get(name), made.folder, base.count_tokens, made.concise_target, {})
        for name in made.objectives
    )
    members = {f"{family}/{name}": adapters / name for family, adapters in folders.items() for name in shared}
    settings = [Mixture(BASE, (), {}), *(Mixture(label, (), {label: 1.0}) for label in members)]
    sampler = merging_sampler(base, load_members(base, members), made.evaluation, made.pool.max_tokens)
    answers = evaluate(base, sampler, settings, prompts, rewards, work / f"answers-{split}.jsonl")
    rows = compare(answers, list(folders), shared, made.objectives, made.evaluation)
    write_csv(rows, out / "members.csv")
    for row in rows:
        typer.echo("  ".join(f"{key} {value}" for key, value in row.items()))


def _named(family: str) -> tuple[str, Path]:
    name, separator, folder = family.partition("=")
    if not (name and separator and (Path(folder) / "adapters").is_dir()):
        raise typer.BadParameter(f"{family!r} is not allowed; allowed: NAME=FOLDER of a family with adapters/")
    return name, Path(folder) / "adapters"


def compare(
    answers: Mapping[str, Sequence[SampledAnswer]],
    families: Sequence[str],
    members: Sequence[str],
    objectives: Sequence[str],
    config: EvaluationConfig,
) -> list[dict[str, object]]:
    """A row for the base, and one for each member and family.

    Args:
        answers: by "base" and "FAMILY/MEMBER", prompts in order, ``config.samples`` each.
        families: names; the first one's members are what the others' are held to.
        members: names.
        objectives: of the rewards, in order.
        config: says how intervals are drawn.

    Returns:
        rows with, for each objective, the mean reward and its 95 % bootstrap interval over prompts (``_low``,
        ``_high``), the same of the difference to the first family's on the same prompts (``_less_first``), and whether
        the mean lies within the first family's interval (``_within``); base and first family have no difference.
    """

    def values(label: str, objective: int) -> np.ndarray:
        return np.array([answer.rewards[objective] for answer in answers[label]]).reshape(-1, config.samples)

    def interval(numbers: np.ndarray, name: str) -> dict[str, object]:
        mean, low, high = bootstrap_mean(numbers, draws=config.bootstrap, seed=config.seed)
        return {name: round(mean, 3), f"{name}_low": round(low, 3), f"{name}_high": round(high, 3)}

    rows = []
    for member, family in [(BASE, ""), *((member, family) for member in members for family in families)]:
        row: dict[str, object] = {"member": member, "family": family}
        for place, objective in enumerate(objectives):
            own = values(f"{family}/{member}" if family else BASE, place)
            row |= interval(own, objective)
            difference = f"{objective}_less_first"
            columns = (difference, f"{difference}_low", f"{difference}_high", f"{objective}_within")
            more: dict[str, object] = dict.fromkeys(columns, "")
            if family and family != families[0]:
                first = values(f"{families[0]}/{member}", place)
                _, low, high = bootstrap_mean(first, draws=config.bootstrap, seed=config.seed)
                more = interval(own - first, difference)
                more[f"{objective}_within"] = int(low <= own.mean() <= high)
            row |= more
        texts = answers[f"{family}/{member}" if family else BASE]
        row["tokens"] = round(float(np.mean([text.tokens for text in texts])), 1)
        row["degenerate"] = round(float(np.mean([text.degenerate for text in texts])), 4)
        rows.append(row)
    return rows


if __name__ == "__main__":
    app()
