"""Trains the value that takes the whole preference, for `parm` (PARM, arXiv 2505.06274).

`python -m ladle.recipes.training.conditioned --config demo --out families/demo`
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import ConditionedConfig
from ladle.recipes.scoring import answer_logprobs
from ladle.recipes.training.candidate_pool import Candidate
from ladle.recipes.training.descent import descend
from ladle.recipes.training.family_manifest import CONDITIONED, write_manifest
from ladle.recipes.training.pairs import PromptPairs, Scale, select_pairs
from ladle.recipes.training.pblora_model import PBLoraModel, at
from ladle.recipes.training.recipe_arguments import recipe_arguments, recipe_parser
from ladle.recipes.training.train import Workshop, fingerprint


@dataclass(frozen=True)
class Wish:
    """A preference, and the pairs of one prompt by one of its objectives.

    Attributes:
        preference: mu, [objectives], sum 1.
        objective: the index of the objective, drawn with the probabilities mu.
        pairs: the prompt's best and worst answers by that objective.
    """

    preference: tuple[float, ...]
    objective: int
    pairs: PromptPairs


def wishes(pairs: Sequence[Sequence[PromptPairs]], config: ConditionedConfig) -> list[list[Wish]]:
    """The steps of the training: every prompt once an epoch, each time under a fresh mu ~ Dirichlet(concentration).

    The paper's loss is sum_i mu_i L_i. Here one objective is drawn with the probabilities mu in place of the sum, whose
    expectation is the same, at the price of one objective (ours).

    Args:
        pairs: by objective, those of every prompt that has any.
    """
    draw = np.random.default_rng(config.seed)
    of = [{one.prompt: one for one in own} for own in pairs]
    prompts = list(dict.fromkeys(one.prompt for own in pairs for one in own))
    steps = []
    for _ in range(config.epochs):
        drawn = []
        for index in draw.permutation(len(prompts)):
            mu = draw.dirichlet([config.concentration] * len(pairs))
            objective = int(draw.choice(len(pairs), p=mu))
            if (own := of[objective].get(prompts[index])) is not None:
                drawn.append(Wish(tuple(mu.tolist()), objective, own))
        steps += [drawn[n : n + config.prompts_per_step] for n in range(0, len(drawn), config.prompts_per_step)]
    return steps


def wish_loss(
    winners: torch.Tensor, losers: torch.Tensor, config: ConditionedConfig, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """DPO (arXiv 2305.18290) plus `winner_nll` times the winners' negative log-likelihood per token.

    Args:
        winners, losers: float [2, pairs], log-probabilities of the answers, nats: the model's over the base's.
        lengths: float [pairs], tokens of the winners.

    Returns:
        (loss, margins): scalar, and float [pairs] in nats.
    """
    margins = (winners[0] - winners[1]) - (losers[0] - losers[1])
    preferred = -torch.nn.functional.logsigmoid(config.beta * margins).mean()
    return preferred - config.winner_nll * (winners[0] / lengths).mean(), margins


def train_conditioned(
    base: LoadedBase,
    pairs: Sequence[Sequence[PromptPairs]],
    config: ConditionedConfig,
    folder: Path,
    base_name: str,
) -> dict[str, float]:
    """Trains a PBLoRA on pairs of every objective and writes it.

    Args:
        base: the frozen base; left as it was.
        pairs: by objective, with the base's log-probabilities.
        config: the recipe's [conditioned].
        folder: there whole or not at all.
        base_name: what adapter_config.json calls its base.

    Returns:
        "loss", "accuracy" (share of pairs with a positive margin) and "margin" (nats), means over the last quarter of
        the steps.

    Raises:
        ValueError: there are no pairs, or the base has none of the targets.
    """
    steps = wishes(pairs, config)
    if not steps:
        raise ValueError(f"{CONDITIONED}: no prompt of the pool has two answers of different reward to learn from")
    model = PBLoraModel(base, len(pairs), config)

    def backward(wish: Wish, share: float) -> tuple[float, float, float]:
        answers: list[Candidate] = [*wish.pairs.winners, *wish.pairs.losers]
        with at(model, wish.preference).on(base):
            _, logprobs = answer_logprobs(
                base.model, base.prompt_ids(wish.pairs.prompt), [answer.tokens for answer in answers]
            )
        reference = torch.tensor([answer.logprob for answer in answers], device=logprobs.device)
        both = torch.stack([logprobs.sum(-1), reference])
        count = len(wish.pairs.winners)
        lengths = torch.tensor([float(len(winner.tokens)) for winner in wish.pairs.winners], device=logprobs.device)
        loss, margins = wish_loss(both[:, :count], both[:, count:], config, lengths)
        (loss * share).backward()
        found = margins.detach()
        return float(loss.detach()), float((found > 0).float().mean()), float(found.mean())

    rates = [(config.learning_rate, model.outer()), (config.mixing_learning_rate, model.mixing())]
    figures = descend(CONDITIONED, rates, steps, backward, warmup=config.warmup, max_gradient=config.max_gradient)
    model.save(folder, base_name)
    return dict(zip(("loss", "accuracy", "margin"), figures.tolist(), strict=True)) | {"steps": float(len(steps))}


def make_conditioned(workshop: Workshop, out: Path) -> Path:
    """Trains the recipe's conditioned value where it is not finished, copies it to `out/adapters`, and writes
    `out/family.toml`; its folder.

    Raises:
        ValueError: the recipe has no [conditioned].
    """
    recipe = workshop.recipe
    config = recipe.conditioned
    if config is None:
        raise ValueError("[conditioned]: the recipe has no such table; a value that takes the preference needs it")
    pool = workshop.pool()
    scale = workshop.scale(pool)
    scales = [*scale.mean.tolist(), *scale.std.tolist()]
    key = fingerprint(workshop.pool_key, scales, recipe.pool.implausible, config, recipe.base_name)
    folder = workshop.folder / f"{CONDITIONED}-{key}"
    if not folder.is_dir():
        pairs = pairs_by_objective(pool, scale, config, recipe.pool.implausible)
        found = train_conditioned(workshop.base, pairs, config, folder, recipe.base_name)
        print(f"{CONDITIONED}: " + ", ".join(f"{name} {figure:.3f}" for name, figure in found.items()))
    finished = out / "adapters" / CONDITIONED
    shutil.copytree(folder, finished, dirs_exist_ok=True)
    write_manifest(recipe, out)
    return finished


def pairs_by_objective(
    pool: Sequence[Candidate], scale: Scale, config: ConditionedConfig, implausible: float
) -> list[list[PromptPairs]]:
    """The pairs of each objective alone, as its policy is trained on."""
    unit = np.eye(len(scale.mean))
    return [select_pairs(pool, scale, row, pairs=config.pairs, implausible=implausible) for row in unit]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    description = "Train the value that takes the whole preference (PBLoRA), for parm."
    parser = recipe_parser("training.conditioned", description, out=": adapters and family.toml")
    parser.add_argument("--threads", type=int, default=1, help="of torch; with one, the same comes out again")
    parser.add_argument("--json", action="store_true", help="print the folder as JSON")
    started = time.monotonic()
    arguments, recipe = recipe_arguments(parser, argv, "conditioned")
    made = make_conditioned(Workshop.open(recipe, arguments.work, threads=arguments.threads), arguments.out)
    if arguments.json:
        print(json.dumps({CONDITIONED: str(made)}))
    else:
        print(f"{made} in {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
