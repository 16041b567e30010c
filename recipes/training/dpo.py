"""Training one LoRA member by direct preference optimisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ladle.recipes.config import AdapterConfig, DpoConfig
from ladle.recipes.model import Base
from ladle.recipes.scoring import answer_logprobs
from ladle.recipes.training.descent import descend
from ladle.recipes.training.lora import new_adapter, save_adapter
from ladle.recipes.training.pairs import PromptPairs

if TYPE_CHECKING:
    from peft import PeftModel


def dpo_loss(
    winner: torch.Tensor,
    loser: torch.Tensor,
    winner_base: torch.Tensor,
    loser_base: torch.Tensor,
    winner_length: torch.Tensor,
    *,
    beta: float,
    winner_nll: float,
) -> torch.Tensor:
    """DPO (arXiv 2305.18290) plus the winner's length-normalised negative log-likelihood (as in RPO, arXiv 2404.19733).

    Args:
        winner, loser: float [pairs], the policy's total log-probability of each answer, nats.
        winner_base, loser_base: float [pairs], the base's.
        winner_length: float [pairs], tokens in the winner.
        beta: strength of the pull towards the base.
        winner_nll: weight of the second term, which keeps DPO from lowering winner and loser alike.

    Returns:
        scalar, the mean over pairs.
    """
    margin = (winner - winner_base) - (loser - loser_base)
    return (-torch.nn.functional.logsigmoid(beta * margin) - winner_nll * winner / winner_length).mean()


def train_member(
    base: Base,
    name: str,
    pairs: Sequence[PromptPairs],
    adapter: AdapterConfig,
    config: DpoConfig,
    folder: Path,
    base_name: str,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains one member and writes it as a PEFT LoRA folder, factors in float16. The base is left as it was.

    Args:
        base: the frozen base.
        name: the member's name, for progress only.
        pairs: its preference pairs; the base's log-probabilities come with them.
        adapter: LoRA shape and initialisation.
        config: hyperparameters and the seed of the order of the prompts.
        folder: where it goes; written aside first and renamed, so that it is there whole or not at all.
        base_name: what adapter_config.json calls its base.
        report: receives one line at the end.

    Returns:
        "loss", "accuracy" (share of pairs whose margin is positive) and "margin" (nats), means over the last quarter
        of the steps.
    """
    model = new_adapter(base, adapter, "default")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    orders = np.random.default_rng(config.seed)
    batches = [
        [pairs[i] for i in order[start : start + config.prompts_per_step]]
        for order in (orders.permutation(len(pairs)) for _ in range(config.epochs))
        for start in range(0, len(pairs), config.prompts_per_step)
    ]
    try:
        loss, accuracy, margin = descend(
            name,
            [(config.learning_rate, parameters)],
            batches,
            lambda prompt, share: _backward(model, base, prompt, config, share),
            warmup=config.warmup,
            max_gradient=config.max_gradient,
        )
        save_adapter(model, folder, base_name)
    finally:
        model.unload()
    report(f"{name}: loss {loss:.3f}, accuracy {accuracy:.2f}, margin {margin:.1f} nats, {len(batches)} steps")
    return {"loss": float(loss), "accuracy": float(accuracy), "margin": float(margin)}


def _backward(
    model: PeftModel, base: Base, pairs: PromptPairs, config: DpoConfig, share: float
) -> tuple[float, float, float]:
    answers = [*pairs.winners, *pairs.losers]
    _, logprobs = answer_logprobs(model, base.prompt_ids(pairs.prompt), [answer.tokens for answer in answers])
    winner, loser = logprobs.sum(-1).chunk(2)
    winner_base, loser_base = torch.tensor([answer.logprob for answer in answers], dtype=torch.float32).chunk(2)
    lengths = torch.tensor([float(len(answer.tokens)) for answer in pairs.winners])
    loss = dpo_loss(winner, loser, winner_base, loser_base, lengths, beta=config.beta, winner_nll=config.winner_nll)
    (loss * share).backward()
    margin = ((winner - winner_base) - (loser - loser_base)).detach()
    return float(loss.detach()), float((margin > 0).float().mean()), float(margin.mean())
