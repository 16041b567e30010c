"""Training one LoRA member by direct preference optimisation."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import Progress

from ladle.recipes.config import AdapterConfig, DpoConfig
from ladle.recipes.model import Base
from ladle.recipes.pairs import PromptPairs
from ladle.recipes.scoring import answer_logprobs

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


def new_adapter(base: Base, config: AdapterConfig, name: str) -> PeftModel:
    """The base with a fresh LoRA adapter (B = 0, so it computes what the base does). Same seed, same initial A for
    every member.

    Sharing the initialisation keeps members in one linearly connected region, which merging them relies on
    (Rewarded Soups, arXiv 2306.04488).
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base.model, lora, adapter_name=name)
    assert isinstance(model, PeftModel)
    return model


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate at step 0, 1, ...: linear warm-up over `warmup * steps`, then linear decay towards
    0."""
    rising = max(1, round(warmup * steps))
    return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)


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
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    orders = np.random.default_rng(config.seed)
    batches = [
        [pairs[i] for i in order[start : start + config.prompts_per_step]]
        for order in (orders.permutation(len(pairs)) for _ in range(config.epochs))
        for start in range(0, len(pairs), config.prompts_per_step)
    ]
    history: list[tuple[float, float, float]] = []
    try:
        with Progress() as progress:
            task = progress.add_task(name, total=len(batches))
            for step, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * schedule(step, len(batches), config.warmup)
                losses = [_backward(model, base, prompt, config, 1.0 / len(batch)) for prompt in batch]
                torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                history.append(tuple(np.mean(losses, axis=0)))
                if not math.isfinite(history[-1][0]):
                    raise FloatingPointError(f"{name}: the loss is {history[-1][0]} at step {step}")
                progress.update(task, advance=1, description=f"{name} loss {history[-1][0]:.3f}")
        _save(model, folder, base_name)
    finally:
        model.unload()
    loss, accuracy, margin = np.mean(history[-max(1, len(history) // 4) :], axis=0)
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


def _save(model: PeftModel, folder: Path, base_name: str) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    lora = model.peft_config["default"]
    lora.base_model_name_or_path = base_name
    lora.target_modules = sorted(lora.target_modules)  # PEFT keeps a set, whose order differs from run to run
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(str(aside), safe_serialization=True)
    (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the family has one card for all members
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
