"""The part of a recipe that TRL trains by: where prompts come from, and the tables [grpo] and [rloo]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALGORITHMS = ("dpo", "grpo", "rloo")
"""What may train a member: direct preference optimisation on pairs of sampled answers, or a policy gradient."""


@dataclass(frozen=True)
class PromptSource:
    """Prompts of the library ``datasets``.

    Attributes:
        dataset: a file (.jsonl, .json, .parquet, .csv, .txt), a folder, or the id of a data set on the hub. A relative
            path is relative to the recipe.
        name: the data set's configuration, where it has several.
        split: the part of it that is read.
        column: holds the prompt: a text, or messages that are one user turn.
        held_out: how many prompts at most are kept from training to validate on, and as many again to test on; never
            more than a fifth of all prompts each.
        seed: which prompts these are.
    """

    dataset: str
    name: str | None = None
    split: str = "train"
    column: str = "prompt"
    held_out: int = 40
    seed: int = 0


@dataclass(frozen=True)
class OnlineConfig:
    """Training of one member by a policy gradient, GRPO or RLOO.

    Attributes:
        seed: decides the order of the prompts and the answers that are sampled.
        beta: strength of the pull towards the base: the weight of the KL divergence, 0 for none.
        generations: answers sampled to a prompt, which are compared with each other.
        prompts_per_step: prompts per step of the optimiser.
        epochs: passes over the prompts.
        learning_rate: at the top of the schedule.
        warmup: share of the steps in which the learning rate rises.
        max_gradient: norm that a step's gradient is clipped to.
        temperature, top_p, top_k: how answers are sampled; ``top_k`` 0 keeps the whole vocabulary.
    """

    seed: int
    beta: float
    generations: int
    prompts_per_step: int
    epochs: int
    learning_rate: float
    warmup: float
    max_gradient: float
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def check_algorithm(algorithm: object, tables: Mapping[str, Any], where: str) -> None:
    """Refuses an algorithm that TRL is not asked for here, or one whose table is missing.

    Args:
        algorithm: what the recipe says.
        tables: the recipe's tables by name.
        where: the file, for the message.

    Raises:
        ValueError: it is not allowed.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{where}: algorithm: {algorithm!r} is not allowed; allowed: {', '.join(ALGORITHMS)}")
    if algorithm not in tables:
        raise ValueError(f"{where}: algorithm: {algorithm!r} needs the table [{algorithm}], which is missing")


def check_online(config: OnlineConfig, where: str) -> None:
    """Refuses counts and rates that nothing can be trained with. Raises ValueError."""
    for key, least in (("generations", 2), ("prompts_per_step", 1), ("epochs", 1)):
        if getattr(config, key) < least:
            raise ValueError(f"{where}.{key}: {getattr(config, key)!r} is not allowed; allowed: {least} or more")
    for key in ("learning_rate", "temperature", "max_gradient"):
        if not getattr(config, key) > 0.0:
            raise ValueError(f"{where}.{key}: {getattr(config, key)!r} is not allowed; allowed: above 0")
    if config.beta < 0.0:
        raise ValueError(f"{where}.beta: {config.beta!r} is not allowed; allowed: 0 or more")
    if not 0.0 <= config.warmup <= 1.0:
        raise ValueError(f"{where}.warmup: {config.warmup!r} is not allowed; allowed: 0 to 1")


def prompt_source(given: object, where: str) -> str | PromptSource:
    """What ``pool.prompts`` says: a name or file as it is, or a table as a `PromptSource`.

    Raises:
        ValueError: an unknown or missing key, or a number that is not allowed.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        raise ValueError(f"{where}: {given!r} is not allowed; allowed: a text, or a table with the key dataset")
    known = list(PromptSource.__dataclass_fields__)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(known)}")
    if not isinstance(given.get("dataset"), str):
        raise ValueError(f"{where}: the key 'dataset' is missing, a file, a folder or the id of a data set")
    source = PromptSource(**given)
    if not isinstance(source.held_out, int) or source.held_out < 1:
        raise ValueError(f"{where}.held_out: {source.held_out!r} is not allowed; allowed: 1 or more")
    return source
