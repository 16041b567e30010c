"""The prompts a family is trained and judged on: a committed list with fixed splits whose topics are disjoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("train", "validation", "test")
_FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class ListedPrompt:
    """One user message, the topic it belongs to and its split (one of `SPLITS`).

    Attributes:
        columns: what else the data set says of it, for rewards that look at that.
    """

    split: str
    topic: str
    text: str
    columns: Mapping[str, object] = field(default_factory=dict, compare=False)


def shipped_lists() -> list[str]:
    """The names of the lists in `recipes/prompts`."""
    return [file.stem for file in _FOLDER.glob("*.jsonl")]


def load_prompts(name: str, split: str | None = None) -> list[ListedPrompt]:
    """Reads a prompt list in file order.

    Args:
        name: a list shipped in `recipes/prompts` ("everyday"), or the path of a .jsonl file with the keys split,
            topic and prompt.
        split: keep only this split; None keeps all.

    Raises:
        ValueError: an unknown split, a repeated prompt, or a topic that occurs in two splits (it would leak into the
            evaluation).
        FileNotFoundError: there is no such list.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: {split!r} is not allowed; allowed: {', '.join(SPLITS)}")
    path = Path(name) if name.endswith(".jsonl") else _FOLDER / f"{name}.jsonl"
    prompts: list[ListedPrompt] = []
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        prompt = ListedPrompt(row["split"], row["topic"], row["prompt"])
        if prompt.split not in SPLITS:
            raise ValueError(f"{path}:{number}: split {prompt.split!r} is not allowed; allowed: {', '.join(SPLITS)}")
        if split_of.setdefault(prompt.topic, prompt.split) != prompt.split:
            raise ValueError(
                f"{path}:{number}: topic {prompt.topic!r} is in both {split_of[prompt.topic]} and {prompt.split}"
            )
        if prompt.text in seen:
            raise ValueError(f"{path}:{number}: prompt {prompt.text!r} occurs twice")
        seen.add(prompt.text)
        prompts.append(prompt)
    return [prompt for prompt in prompts if split is None or prompt.split == split]
