"""Training one explicit value: a LoRA trunk with a scalar head that predicts an answer's final reward from its
beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from ladle.merging.members.value_head import load_value_head
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig, ValueConfig
from ladle.recipes.prompt_list import ListedPrompt
from ladle.recipes.scoring import answer_states
from ladle.recipes.training.candidate_pool import Candidate
from ladle.recipes.training.descent import descend
from ladle.recipes.training.lora import new_adapter, save_adapter

if TYPE_CHECKING:
    from peft import PeftModel

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rated:
    """Answers to one prompt, token ids, and the standardised reward that each of them got in the end."""

    prompt: str
    answers: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]


def by_prompt(pool: Sequence[Candidate], z: Sequence[float] | np.ndarray) -> list[Rated]:
    """Groups a pool by prompt, prompts and answers in order; an answer that occurs twice counts once.

    Args:
        pool: candidates.
        z: their standardised rewards for one objective, [candidates].
    """
    groups: dict[str, dict[tuple[int, ...], float]] = {}
    for candidate, reward in zip(pool, np.asarray(z, dtype=np.float64).tolist(), strict=True):
        groups.setdefault(candidate.prompt, {}).setdefault(candidate.tokens, reward)
    return [Rated(prompt, tuple(rated), tuple(rated.values())) for prompt, rated in groups.items()]


def held_out_topics(prompts: Sequence[ListedPrompt], config: ValueConfig) -> frozenset[str]:
    """The topics whose prompts are kept from training, to measure values on.

    Raises:
        ValueError: none would be left to train on.
    """
    topics = sorted({prompt.topic for prompt in prompts})
    if config.held_out >= len(topics):
        raise ValueError(
            f"value.held_out: {config.held_out} is not allowed; allowed: fewer than the {len(topics)} topics"
        )
    chosen = np.random.default_rng(config.seed).permutation(len(topics))[: config.held_out]
    return frozenset(topics[i] for i in chosen)


def lambda_returns(
    values: torch.Tensor, lengths: Sequence[int], rewards: Sequence[float], td_lambda: float
) -> torch.Tensor:
    """Targets of TD(lambda) without discount and with one reward, at the end (as VAS trains, arXiv 2405.06639).

    With R_t the target after t tokens of an answer of n tokens and final reward r: R_n = r, and
    R_t = (1 - lambda) V_{t+1} + lambda R_{t+1} below. Lambda 1 is the final reward everywhere. That the whole answer is
    a state with a target of its own, too, is our reconstruction.

    Args:
        values: float [answers, longest], V after each token; what lies beyond an answer's end is not looked at.
        lengths: tokens of each answer.
        rewards: final rewards.
        td_lambda: in [0, 1].

    Returns:
        as `values`, without gradient, 0 beyond an answer's end.
    """
    known = values.detach()
    targets = torch.zeros_like(known)
    for row, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        targets[row, length - 1] = reward
        for t in range(length - 2, -1, -1):
            targets[row, t] = (1.0 - td_lambda) * known[row, t + 1] + td_lambda * targets[row, t + 1]
    return targets


def value_loss(
    values: torch.Tensor, lengths: Sequence[int], rewards: Sequence[float], td_lambda: float
) -> torch.Tensor:
    """1/2 sum_t (V_t - R_t)^2 over every prefix of every answer, divided by their number.

    With lambda 1 this is the loss of CD-FUDGE (Controlled Decoding, arXiv 2310.17022); the division, which makes a
    prefix count the same whatever it is batched with, is ours.

    Args:
        values: float [answers, longest], V after each token.
        lengths, rewards, td_lambda: see `lambda_returns`.

    Returns:
        scalar.
    """
    targets = lambda_returns(values, lengths, rewards, td_lambda)
    ends = torch.tensor(list(lengths), device=values.device)
    valid = torch.arange(values.shape[1], device=values.device)[None, :] < ends[:, None]
    return 0.5 * ((values - targets)[valid] ** 2).mean()


def hidden_size(base: LoadedBase) -> int:
    """Width of the base's last hidden state."""
    return int(base.model.config.get_text_config().hidden_size)


def new_head(hidden: int) -> torch.nn.Linear:
    """A scalar head that starts at zero: hidden -> 1, float32."""
    head = torch.nn.Linear(hidden, 1, dtype=torch.float32)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head


def load_head(folder: Path, hidden: int) -> torch.nn.Linear:
    """The head that `train_value` wrote into a folder, as the server reads it: hidden -> 1, float32.

    Raises:
        ladle.merging.exceptions.FamilyError: it is missing, broken or of another width.
    """
    saved = load_value_head(folder, hidden)
    head = new_head(hidden)
    head.load_state_dict({"weight": saved.weight.view(1, -1), "bias": torch.tensor([saved.bias])})
    return head.requires_grad_(False)


def answer_values(
    model: torch.nn.Module, head: torch.nn.Linear, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> torch.Tensor:
    """V after each token of each answer, float32 [answers, longest]; beyond an answer's end it means nothing."""
    states, _ = answer_states(model, prompt, answers)
    values: torch.Tensor = head(states)
    return values.squeeze(-1)


class HeadedConfig(Protocol):
    """The hyperparameters that training a trunk with a head takes."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the trunk's factors, at the top of the schedule."""

    @property
    def head_learning_rate(self) -> float:
        """Learning rate of the head."""

    @property
    def warmup(self) -> float:
        """Share of the steps during which the rates rise."""

    @property
    def max_gradient(self) -> float:
        """Norm to which gradients are clipped."""


def train_headed(
    name: str,
    model: PeftModel,
    head: torch.nn.Linear,
    batches: Sequence[Sequence[_T]],
    backward: Callable[[_T, float], tuple[float]],
    config: HeadedConfig,
    folder: Path,
    base_name: str,
) -> float:
    """Descends on ``batches`` (see `descend`), writes the adapter and its head, and leaves the base as it was, also
    where that fails.

    Args:
        model: as `new_adapter` made it.
        head: hidden -> 1.
        folder: where both go; there whole or not at all.
        base_name: what adapter_config.json calls its base.

    Returns:
        The loss, mean over the last quarter of the steps.
    """
    trunk = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rates = [(config.learning_rate, trunk), (config.head_learning_rate, list(head.parameters()))]
    try:
        (loss,) = descend(name, rates, batches, backward, warmup=config.warmup, max_gradient=config.max_gradient)
        save_adapter(model, folder, base_name, {"weight": head.weight[0], "bias": head.bias})
    finally:
        model.unload()
    return float(loss)


def train_value(
    base: LoadedBase,
    name: str,
    rated: Sequence[Rated],
    adapter: AdapterConfig,
    config: ValueConfig,
    folder: Path,
    base_name: str,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains one value and writes it as a PEFT LoRA folder with `value_head.safetensors` beside the adapter: `weight`
    [hidden] and `bias` [1], float32. The base is left as it was.

    A pass takes the next `config.answers` candidates of a prompt from an order that is shuffled once, so that no answer
    is seen twice before all of its prompt were seen.

    Args:
        base: the frozen base.
        name: the value's name, for progress only.
        rated: the answers to train on, by prompt.
        adapter: LoRA shape and initialisation; the same one for all values that are to be merged.
        config: hyperparameters, and the seed that draws prompts and answers.
        folder: where it goes; there whole or not at all.
        base_name: what adapter_config.json calls its base.
        report: receives one line at the end.

    Returns:
        "loss", mean over the last quarter of the steps.
    """
    model = new_adapter(base, adapter, "default")
    head = new_head(hidden_size(base)).to(base.model.device)
    draw = np.random.default_rng(config.seed)
    orders = [draw.permutation(len(prompt.answers)) for prompt in rated]
    passes = [
        (epoch, draw.permutation(len(rated))) for epoch in range(config.epochs)
    ]  # fmt: skip
    batches = [
        [_part(rated[i], orders[i], epoch, config.answers) for i in order[start : start + config.prompts_per_step]]
        for epoch, order in passes
        for start in range(0, len(rated), config.prompts_per_step)
    ]

    def backward(part: Rated, share: float) -> tuple[float]:
        values = answer_values(model, head, base.prompt_ids(part.prompt), part.answers)
        loss = value_loss(values, [len(answer) for answer in part.answers], part.rewards, config.td_lambda)
        (loss * share).backward()
        return (float(loss.detach()),)

    loss = train_headed(name, model, head, batches, backward, config, folder, base_name)
    report(f"{name}: loss {loss:.3f}, {len(batches)} steps")
    return {"loss": loss}


def _part(prompt: Rated, order: np.ndarray, epoch: int, count: int) -> Rated:
    """The answers of a prompt that a pass sees: the next `count` in `order`, from its beginning again after its end."""
    take = min(count, len(order))
    chosen = [int(order[(epoch * take + k) % len(order)]) for k in range(take)]
    return Rated(prompt.prompt, tuple(prompt.answers[i] for i in chosen), tuple(prompt.rewards[i] for i in chosen))
