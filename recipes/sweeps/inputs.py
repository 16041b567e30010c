"""What a sweep reads: prompts and rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ladle.recipes.classifier import Classifier
from ladle.recipes.prompt_list import load_prompts
from ladle.recipes.reward_sources import reward_of
from ladle.recipes.rewards import Reward, make_reward


def read_prompts(name: str, split: str) -> list[str]:
    """The prompts of a list with splits (``.jsonl``, or one that is shipped), or the lines of any other file.

    Raises:
        ValueError: there is none, or an unknown split.
        OSError: the file cannot be read.
    """
    path = Path(name)
    if path.suffix and path.suffix != ".jsonl":
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        prompts = [prompt.text for prompt in load_prompts(name, split)]
    if not prompts:
        raise ValueError(f"prompts: {name!r} is not allowed; allowed: a file with prompts in it")
    return prompts


def rewards_of(objectives: Sequence[str], given: Sequence[str], count_tokens: Callable[[str], int]) -> list[Reward]:
    """The reward of every objective: the classifier or function given for it, else the built-in one of its name.

    Args:
        given: ``OBJECTIVE=FOLDER``, ``OBJECTIVE=FOLDER#LABEL``, ``OBJECTIVE=FILE.py:FUNCTION`` or
            ``OBJECTIVE=MODULE:FUNCTION``; relative to the working directory.

    Raises:
        ValueError: an objective that no reward scores, or a classifier for none.
    """
    rewards: dict[str, Reward] = {}
    for text in given:
        name, equals, place = text.partition("=")
        folder, _, label = place.partition("#")
        if name not in objectives or not (equals and folder) or not (label or "0").isdigit():
            allowed = f"OBJECTIVE=FOLDER[#LABEL] or FILE.py:FUNCTION, with an objective of {', '.join(objectives)}"
            raise ValueError(f"reward: {text!r} is not allowed; allowed: {allowed}")
        if ":" in place:
            rewards[name] = reward_of(name, place, Path.cwd(), count_tokens)
        else:
            rewards[name] = Classifier(name, folder, int(label or 0))
    return [rewards[name] if name in rewards else make_reward(name, count_tokens) for name in objectives]
