"""Training one LoRA member by direct preference optimisation, with TRL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import DpoConfig
from ladle.recipes.training.pairs import PromptPairs
from ladle.recipes.training.trl_run import TrainingJob, arguments, own_arguments, run, shares, warmup_steps

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer


def dpo_arguments(config: DpoConfig, given: Mapping[str, Any], job: TrainingJob, pairs: int) -> DPOConfig:
    """TRL's configuration: DPO (arXiv 2305.18290) plus ``winner_nll`` times the winners' mean negative log-likelihood
    per token (as in RPO, arXiv 2404.19733), which keeps DPO from lowering winner and loser alike.

    Args:
        config: the recipe's [dpo].
        given: its [trl].
        job: the member.
        pairs: how many there are.

    Raises:
        ValueError: see `arguments` and `shares`.
    """
    from trl import DPOConfig

    rows, repeats = shares(config.prompts_per_step * config.pairs, given, "pairs")
    steps = config.epochs * math.ceil(pairs / (config.prompts_per_step * config.pairs))
    own = own_arguments(config, job, rows, repeats)
    own |= {"beta": config.beta, "num_train_epochs": config.epochs, "warmup_steps": warmup_steps(config, steps)}
    own |= {"max_length": None, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, config.winner_nll]}
    if "loss_type" in given:  # another loss stands alone, and is weighted by nothing
        own["loss_weights"] = None
    configuration: DPOConfig = arguments(DPOConfig, given, own)
    return configuration


def train_by_dpo(
    base: LoadedBase,
    job: TrainingJob,
    pairs: Sequence[PromptPairs],
    config: DpoConfig,
    given: Mapping[str, Any],
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains one member on its pairs and writes it as a PEFT LoRA folder, factors in float16.

    Args:
        base: the frozen base; left as it was.
        job: the member.
        pairs: its preference pairs; the base's log-probabilities come with them.
        config: the recipe's [dpo].
        given: its [trl].
        report: receives one line at the end.

    Returns:
        see `ladle.recipes.training.trl_run.run`.

    Raises:
        ValueError: there are no pairs, or see `dpo_arguments`.
    """
    rows = [
        {
            "prompt_ids": base.prompt_ids(prompt.prompt),
            "chosen_ids": list(winner.tokens),
            "rejected_ids": list(loser.tokens),
            "ref_chosen_logps": winner.logprob,
            "ref_rejected_logps": loser.logprob,
        }
        for prompt in pairs
        for winner, loser in zip(prompt.winners, prompt.losers, strict=True)
    ]
    if not rows:
        raise ValueError(f"{job.name}: no prompt of the pool has two answers of different reward to learn from")
    settings = dpo_arguments(config, given, job, len(rows))
    return run(base, job, lambda **parts: _trainer(rows, settings, **parts), report)


def _trainer(rows: list[dict[str, Any]], settings: DPOConfig, **parts: Any) -> DPOTrainer:
    from datasets import Dataset
    from trl import DPOTrainer

    class PairsOfTokens(DPOTrainer):
        """Takes pairs as the tokens that were sampled, with the base's log-probabilities: text would not always become
        the same tokens again, an answer that was cut off would get an end, and the base would be run twice."""

        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    trainer = PairsOfTokens(args=settings, train_dataset=Dataset.from_list(rows), **parts)
    # Set once the trainer is made: on the way it would have the base read all pairs again.
    trainer.precompute_ref_logps = True
    return trainer
