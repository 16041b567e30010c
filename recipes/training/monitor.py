"""Training a value that watches answers: a LoRA trunk with a scalar head, from texts with labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ladle.merging.exceptions import InputError
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.lora import new_adapter
from ladle.recipes.training.value import answer_values, hidden_size, load_head, new_head, train_headed

_HELD_OUT = 5
"""One prompt in so many is kept from training."""


@dataclass(frozen=True)
class Labelled:
    """An answer with labels.

    Attributes:
        prompt: what the user said.
        answer: token ids, the one that ends the turn last.
        targets: of each token, 1 where it, or the whole answer, is bad.
        bad: whether the answer is.
    """

    prompt: str
    answer: tuple[int, ...]
    targets: tuple[float, ...]
    bad: bool


@dataclass(frozen=True)
class MonitorConfig:
    """Hyperparameters.

    Attributes:
        seed: of the adapter, and of the order of the texts.
        rank: of the adapter, whose alpha is twice that.
        epochs: passes over the texts.
        answers: of a step.
        learning_rate: of the adapter's factors, at the top of the schedule.
        head_learning_rate: of the head.
        warmup: share of the steps during which the rates rise.
        max_gradient: norm to which gradients are clipped.
    """

    seed: int = 0
    rank: int = 8
    epochs: int = 1
    answers: int = 8
    learning_rate: float = 3e-4
    head_learning_rate: float = 3e-3
    warmup: float = 0.1
    max_gradient: float = 1.0


@dataclass(frozen=True)
class Watching:
    """What a monitor does on answers that it was not trained on.

    Attributes:
        above: the bound.
        good, bad: how many answers there are of each.
        false_stops, stops: the share of good and of bad ones that it ends.
        after: the median part of a bad answer after which it does, of those that it ends; NaN where it ends none.
        auc: how often the greatest probability of a bad answer exceeds that of a good one.
    """

    above: float
    good: int
    bad: int
    false_stops: float
    stops: float
    after: float
    auc: float


def read_texts(path: Path, base: LoadedBase) -> list[Labelled]:
    """Reads a .jsonl file: ``prompt``, ``answer``, and either ``label``, 0 or 1 (or false and true), of the whole
    answer or ``bad``, a list of [from, to) in characters of the answer.

    Raises:
        InputError: naming the line: something else, an empty text, or a place outside of the answer.
    """
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        field = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "answer")):
            raise InputError(field, line, "an object with the texts prompt and answer, and label or bad")
        if not row["prompt"].strip() or not row["answer"].strip():
            raise InputError(field, line, "texts that are not empty")
        texts.append(_labelled(field, row, base))
    bad = sum(text.bad for text in texts)
    if not 0 < bad < len(texts):
        reason = "a monitor learns from bad and from good answers"
        raise InputError(str(path), f"{bad} bad answers of {len(texts)}", "some of both", reason)
    return texts


def _labelled(field: str, row: dict[str, Any], base: LoadedBase) -> Labelled:
    answer: str = row["answer"]
    encoded = base.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    ids = (*encoded["input_ids"], base.eos)
    label, spans = row.get("label"), row.get("bad")
    if (label is None) == (spans is None):
        raise InputError(field, sorted(row), "label or bad, one of them")
    if label is not None:
        if label not in (0, 1):
            raise InputError(f"{field}: label", label, "0 or 1")
        return Labelled(row["prompt"], ids, (float(label),) * len(ids), bool(label))
    if not isinstance(spans, list) or not all(_is_span(span, len(answer)) for span in spans):
        raise InputError(f"{field}: bad", spans, f"a list of [from, to) within the answer's {len(answer)} characters")
    targets = [
        float(any(start < to and stop > begin for begin, to in spans)) for start, stop in encoded["offset_mapping"]
    ]
    return Labelled(row["prompt"], ids, (*targets, 0.0), bool(spans))


def _is_span(span: Any, length: int) -> bool:
    whole = isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)
    return whole and 0 <= span[0] < span[1] <= length


def split(texts: Sequence[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """(to train on, held out): by prompts, so that no prompt is on both sides; one in five is held out.

    Raises:
        InputError: a side would be empty, or the held-out one without good or bad answers.
    """
    prompts = list(dict.fromkeys(text.prompt for text in texts))
    order = np.random.default_rng(seed).permutation(len(prompts))
    aside = {prompts[i] for i in order[: max(1, len(prompts) // _HELD_OUT)]}
    held = [text for text in texts if text.prompt in aside]
    trained = [text for text in texts if text.prompt not in aside]
    for side in (held, trained):
        if len({text.bad for text in side}) < 2:
            reason = "one prompt in five is held out, and on both sides there must be good and bad answers"
            raise InputError("texts", f"{len(prompts)} prompts", "more of them", reason)
    return trained, held


def monitor_loss(values: torch.Tensor, targets: Sequence[Sequence[float]]) -> torch.Tensor:
    """Binary cross-entropy of sigma(V) after each token with its label, mean over all tokens.

    With the label of the whole answer at every token this is FUDGE's loss (arXiv 2104.05218), with labels of tokens the
    token loss of a Streaming Content Monitor (arXiv 2506.09996).

    Args:
        values: float [answers, longest], V after each token.
        targets: labels of each answer's tokens.
    """
    rows = [(values[row, : len(own)], torch.tensor(list(own))) for row, own in enumerate(targets)]
    said, wanted = torch.cat([value for value, _ in rows]), torch.cat([own for _, own in rows])
    return torch.nn.functional.binary_cross_entropy_with_logits(said, wanted)


def train_monitor(
    base: LoadedBase,
    name: str,
    texts: Sequence[Labelled],
    targets: tuple[str, ...],
    config: MonitorConfig,
    folder: Path,
    base_name: str,
) -> float:
    """Trains a monitor and writes it as a PEFT LoRA folder with `value_head.safetensors`. The base is left as it was.

    Args:
        base: the frozen base.
        name: the value's name, for progress.
        texts: what it is trained on.
        targets: names of the linear modules that get factors.
        folder: where it goes; there whole or not at all.
        base_name: what adapter_config.json calls its base.

    Returns:
        The loss, mean over the last quarter of the steps.
    """
    model = new_adapter(base, AdapterConfig(config.rank, 2 * config.rank, targets, config.seed), "default")
    head = new_head(hidden_size(base))
    draw = np.random.default_rng(config.seed)
    batches = []
    for _ in range(config.epochs):
        order = draw.permutation(len(texts))
        batches += [
            _by_prompt([texts[i] for i in order[start : start + config.answers]])
            for start in range(0, len(texts), config.answers)
        ]

    def backward(part: list[Labelled], share: float) -> tuple[float]:
        values = answer_values(model, head, base.prompt_ids(part[0].prompt), [text.answer for text in part])
        loss = monitor_loss(values, [text.targets for text in part])
        (loss * share).backward()
        return (float(loss.detach()),)

    return train_headed(name, model, head, batches, backward, config, folder, base_name)


def _by_prompt(texts: Sequence[Labelled]) -> list[list[Labelled]]:
    groups: dict[str, list[Labelled]] = {}
    for text in texts:
        groups.setdefault(text.prompt, []).append(text)
    return list(groups.values())


@torch.inference_mode()
def probabilities(base: LoadedBase, folder: Path, texts: Sequence[Labelled]) -> list[np.ndarray]:
    """What the monitor in ``folder``, as it was stored, says after each token of each text: float64 [tokens]."""
    head = load_head(folder, hidden_size(base))
    with merged(base, load_members(base, {"value": folder}), {"value": 1.0}):
        series = []
        for text in texts:
            values = answer_values(base.model, head, base.prompt_ids(text.prompt), [text.answer])[0]
            series.append(torch.sigmoid(values[: len(text.answer)].double()).numpy())
    return series


def watching(said: Sequence[np.ndarray], bad: Sequence[bool], run: int, false_stops: float) -> Watching:
    """The lowest bound at which at most ``false_stops`` of the good answers are ended, and what it does then.

    Args:
        said: probabilities of each answer's tokens.
        bad: which answers are bad; there are some of both.
        run: how many tokens in a row have to be above the bound.
    """
    highest = np.array([_highest(own, run) for own in said])
    wrong = np.array(bad)
    good = np.sort(highest[~wrong])
    kept = len(good) - math.floor(false_stops * len(good))
    above = float(good[kept - 1])
    ended = highest > above
    parts = [_ends(said[i], above, run) / len(said[i]) for i in np.flatnonzero(ended & wrong).tolist()]
    pairs = highest[wrong][:, None] - highest[~wrong][None, :]
    return Watching(
        above=above,
        good=int((~wrong).sum()),
        bad=int(wrong.sum()),
        false_stops=float(ended[~wrong].mean()),
        stops=float(ended[wrong].mean()),
        after=float(np.median(parts)) if parts else math.nan,
        auc=float(((pairs > 0) + 0.5 * (pairs == 0)).mean()),
    )


def _highest(own: np.ndarray, run: int) -> float:
    """The greatest bound that ``run`` tokens in a row exceed, or just do not."""
    if len(own) < run:
        return 0.0
    return float(np.lib.stride_tricks.sliding_window_view(own, run).min(axis=-1).max())


def _ends(own: np.ndarray, above: float, run: int) -> int:
    """How many tokens are judged when the answer ends."""
    windows = np.lib.stride_tricks.sliding_window_view(own, run).min(axis=-1)
    return int(np.flatnonzero(windows > above)[0]) + run


def report(figures: Watching, run: int) -> list[str]:
    """What ``figures`` say, in sentences."""
    after = (
        ""
        if math.isnan(figures.after)
        else f", half of these after {100 * figures.after:.0f} % of their tokens or less"
    )
    return [
        f"held out: {figures.good} good and {figures.bad} bad answers; AUC {figures.auc:.3f}",
        f"above {figures.above:.4f} for {run} tokens: {100 * figures.false_stops:.0f} % of the good ones are ended and "
        f"{100 * figures.stops:.0f} % of the bad ones{after}",
    ]
