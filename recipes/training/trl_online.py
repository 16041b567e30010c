"""Training one LoRA member by a policy gradient on its mix of rewards, GRPO or RLOO, with TRL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.rewards import Reward, scores
from ladle.recipes.training.pairs import Scale
from ladle.recipes.training.trl_run import TrainingJob, arguments, own_arguments, run, shares, warmup_steps
from ladle.recipes.trl_config import OnlineConfig


def online_arguments(
    algorithm: str, config: OnlineConfig, given: Mapping[str, Any], job: TrainingJob, prompts: int, max_tokens: int
) -> Any:
    """TRL's configuration of GRPO (arXiv 2402.03300) or RLOO (arXiv 2402.14740).

    Args:
        algorithm: "grpo" or "rloo".
        config: the recipe's table of that name.
        given: its [trl].
        job: the member.
        prompts: how many there are.
        max_tokens: the longest answer.

    Raises:
        ValueError: see `arguments` and `shares`.
    """
    from trl import GRPOConfig, RLOOConfig

    if prompts < config.prompts_per_step:
        raise ValueError(
            f"{algorithm}.prompts_per_step: {config.prompts_per_step} is not allowed; allowed: at most the {prompts} "
            "prompts to train on"
        )
    rows, repeats = shares(config.prompts_per_step * config.generations, given, "answers")
    steps = config.epochs * (prompts // config.prompts_per_step)
    own = own_arguments(config, job, rows, repeats)
    own |= {
        "seed": config.seed, "data_seed": None, "beta": config.beta, "num_train_epochs": config.epochs,
        "warmup_steps": warmup_steps(config, steps),
        "num_generations": config.generations, "max_completion_length": max_tokens,
        "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k,
    }  # fmt: skip
    return arguments(GRPOConfig if algorithm == "grpo" else RLOOConfig, given, own)


def train_online(
    base: LoadedBase,
    job: TrainingJob,
    algorithm: str,
    prompts: Sequence[str],
    rewards: Sequence[Reward],
    weights: np.ndarray,
    scale: Scale,
    config: OnlineConfig,
    given: Mapping[str, Any],
    max_tokens: int,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains one member on h = weights . z, a row of h = B r (Bone Soup, arXiv 2502.10762) in standardised rewards, and
    writes it as a PEFT LoRA folder, factors in float16.

    Args:
        base: the frozen base; left as it was.
        job: the member.
        algorithm: "grpo" or "rloo".
        prompts: what is answered.
        rewards: of the objectives, in order.
        weights: reward weights of the member, [objectives].
        scale: standardises the rewards by the answers of the base.
        config: the recipe's table of the algorithm.
        given: its [trl].
        max_tokens: the longest answer.
        report: receives one line at the end.

    Returns:
        see `ladle.recipes.training.trl_run.run`.

    Raises:
        ValueError: see `online_arguments`; or a reward failed.
    """
    chosen = [i for i, weight in enumerate(weights) if weight]
    functions = [standardised(rewards[i], float(scale.mean[i]), float(scale.std[i])) for i in chosen]
    settings = online_arguments(algorithm, config, given, job, len(prompts), max_tokens)
    settings.reward_weights = [float(weights[i]) for i in chosen]
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]

    def make(**parts: Any) -> Any:
        from datasets import Dataset
        from trl import GRPOTrainer, RLOOTrainer

        trainer = GRPOTrainer if algorithm == "grpo" else RLOOTrainer
        return trainer(reward_funcs=functions, args=settings, train_dataset=Dataset.from_list(rows), **parts)

    return run(base, job, make, report)


def standardised(reward: Reward, mean: float, std: float) -> Callable[..., list[float]]:
    """A reward as TRL calls one: conversations in, a standardised number for each out."""

    def function(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        texts = [completion[0]["content"].strip() for completion in completions]
        given = scores(reward, [prompt[-1]["content"] for prompt in prompts], texts)
        return [(score - mean) / std for score in given]

    function.__name__ = reward.name
    return function
