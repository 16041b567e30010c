"""What a sweep reads: prompts and rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ladle.recipes.prompts import load_prompts
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


class Classifier:
    """A transformers sequence classifier as a reward: the logit of one label, on the conversation in the model's chat
    format if it has one, else prompt and response on two lines."""

    def __init__(self, name: str, folder: str, label: int = 0) -> None:
        """Load it. Raises ValueError: nothing that transformers loads, or a label that it does not have."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from ladle.merging.checkpoints.library_lock import loading

        self.name = name
        self._label = label
        try:
            # The field that is a path is a folder on disk, never a name to look up elsewhere.
            with loading(f"reading {folder}"):
                self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                ).eval()
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise ValueError(f"reward: {folder!r} is not allowed; allowed: a sequence classifier ({error})") from None
        labels = int(self._model.config.num_labels)
        if not 0 <= label < labels:
            raise ValueError(f"reward: label {label} is not allowed; allowed: 0 to {labels - 1} of {folder!r}")

    def __call__(self, prompt: str, response: str) -> float:
        import torch

        if self._tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            inputs = self._tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True, truncation=True)
        else:
            inputs = self._tokenizer(f"{prompt}\n{response}", return_tensors="pt", truncation=True)
        with torch.inference_mode():
            return float(self._model(**inputs).logits[0, self._label])


def rewards_of(
    objectives: Sequence[str], classifiers: Sequence[str], count_tokens: Callable[[str], int]
) -> list[Reward]:
    """The reward of every objective: the classifier given for it, else the built-in one of its name.

    Args:
        classifiers: ``OBJECTIVE=FOLDER`` or ``OBJECTIVE=FOLDER#LABEL``.

    Raises:
        ValueError: an objective that no reward scores, or a classifier for none.
    """
    given: dict[str, Reward] = {}
    for text in classifiers:
        name, equals, place = text.partition("=")
        folder, _, label = place.partition("#")
        if name not in objectives or not (equals and folder) or not (label or "0").isdigit():
            allowed = f"OBJECTIVE=FOLDER[#LABEL] with an objective of {', '.join(objectives)}"
            raise ValueError(f"reward: {text!r} is not allowed; allowed: {allowed}")
        given[name] = Classifier(name, folder, int(label or 0))
    return [given[name] if name in given else make_reward(name, count_tokens) for name in objectives]
