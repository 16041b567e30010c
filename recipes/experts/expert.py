"""Training one domain expert: a LoRA member that learns the answers of its domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig, ExpertsConfig
from ladle.recipes.domains.domains import DomainQuestion
from ladle.recipes.scoring import Encoded
from ladle.recipes.training.trl_run import TrainingJob, arguments, own_arguments, run, shares, warmup_steps

_WINDOW = 4  # batches whose items are sorted by length among themselves, so that little is padded


def encode(base: LoadedBase, question: DomainQuestion, answer: str | None = None) -> Encoded:
    """A question in the base's chat template with an answer (the right one unless another is given) that ends its
    turn."""
    text = question.task.answer if answer is None else answer
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Encoded(tuple(base.prompt_ids(question.task.prompt)), (*ids, base.eos))


def batches(items: Sequence[Encoded], size: int, random: np.random.Generator) -> list[list[int]]:
    """Indices of the items in random order, `size` a batch; a batch has items of similar length."""
    order = random.permutation(len(items)).tolist()
    span = _WINDOW * size
    windows = [order[start : start + span] for start in range(0, len(order), span)]
    made = []
    for window in windows:
        window.sort(key=lambda index: len(items[index].prompt) + len(items[index].answer))
        made += [window[start : start + size] for start in range(0, len(window), size)]
    return [made[i] for i in random.permutation(len(made))]


def language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood, nats, of the answers' tokens; prompts have no part in it.

    Args:
        logits: float [tokens, vocabulary].
        targets: int64 [tokens].
    """
    return torch.nn.functional.cross_entropy(logits, targets)


def train_expert(
    base: LoadedBase,
    name: str,
    questions: Sequence[DomainQuestion],
    adapter: AdapterConfig,
    config: ExpertsConfig,
    folder: Path,
    base_name: str,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains one expert on a pass over its questions, with TRL's SFTTrainer, and writes it as a PEFT LoRA folder,
    factors in float16. The base is left as it was.

    Args:
        base: the frozen base.
        name: the expert's name, for progress only.
        questions: what it learns to answer.
        adapter: LoRA shape and initialisation; the same one for all experts.
        config: hyperparameters and the seed of the order.
        folder: where it goes; there whole or not at all.
        base_name: what adapter_config.json calls its base.
        report: receives one line at the end.

    Returns:
        "loss", mean over the last quarter of the steps, nats a token.
    """
    job = TrainingJob(name, folder, base_name, adapter)
    rows, repeats = shares(config.batch, {}, "questions")
    own = own_arguments(config, job, rows, repeats)
    own |= {"num_train_epochs": 1, "warmup_steps": warmup_steps(config, math.ceil(len(questions) / config.batch))}
    # Tokens with labels are what SFTTrainer calls prepared; answers of like length share a batch.
    own |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    own |= {"train_sampling_strategy": "group_by_length"}

    def make(**parts: Any) -> Any:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        items = [encode(base, question) for question in questions]
        data = Dataset.from_list([_labelled(item) for item in items])
        return SFTTrainer(args=arguments(SFTConfig, {}, own), train_dataset=data, **parts)

    return {"loss": run(base, job, make, report)["loss"]}


def _labelled(item: Encoded) -> dict[str, list[int]]:
    """Prompt and answer as TRL takes them; prompts have no part in the loss."""
    return {
        "input_ids": [*item.prompt, *item.answer],
        "labels": [*[-100] * len(item.prompt), *item.answer],
    }
