"""From the samples of a sweep to its figures: rewards per setting, measures per method, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ladle.recipes.sweeps.control_measures import (
    distinct,
    hypervolume,
    inner_product,
    kendall,
    monotone_share,
    spacing,
    sparsity,
    spearman,
)
from ladle.recipes.sweeps.grid import BASE, Setting
from ladle.recipes.sweeps.store import Sample
from ladle.recipes.text_metrics import bootstrap_mean, is_degenerate

REFERENCE = -1.0
"""The reference point of the hypervolume, for every objective: in standard deviations of the base's own answers, from
their mean."""


COMPARED = ("hypervolume", "hypervolume_sound", "inner_product")
"""The measures that methods are compared by."""


class RewardTable:
    """Rewards of a sweep as arrays: ``z`` [settings, prompts, answers, objectives], in standard deviations of the
    base's answers and from their mean, so that objectives count alike; ``raw`` the same before that."""

    def __init__(
        self, settings: Sequence[Setting], samples: Mapping[tuple[str, int, int], Sample], objectives: Sequence[str]
    ) -> None:
        """Settings that not all prompts and answers are there of are left out."""
        prompts = 1 + max((sample.prompt for sample in samples.values()), default=-1)
        answers = 1 + max((sample.number for sample in samples.values()), default=-1)
        answers_of = [(prompt, number) for prompt in range(prompts) for number in range(answers)]
        self.objectives = list(objectives)
        self.settings = [s for s in settings if all((s.key, *place) in samples for place in answers_of)]
        self.texts = {s.key: [samples[(s.key, *place)] for place in answers_of] for s in self.settings}
        shape = (len(self.settings), prompts, answers, len(self.objectives))
        rewards = [[[t.rewards[name] for name in objectives] for t in self.texts[s.key]] for s in self.settings]
        self.raw = np.array(rewards, dtype=float).reshape(shape)
        base = [index for index, setting in enumerate(self.settings) if setting.label == BASE]
        if not base:
            raise ValueError("the base's own answers are not complete, and rewards are measured against them")
        self.base = base[0]
        self.z = standardised(self.raw, self.base_rewards)
        degenerate = [[is_degenerate(text.text.split()) for text in self.texts[s.key]] for s in self.settings]
        self.degenerate = np.array(degenerate, dtype=bool).reshape(shape[:-1])

    @property
    def base_rewards(self) -> np.ndarray:
        """Rewards of the base's own answers, float64 [answers of all prompts, objectives]."""
        return np.asarray(self.raw[self.base].reshape(-1, len(self.objectives)))

    @property
    def methods(self) -> list[str]:
        """All but the base, in order."""
        return list(dict.fromkeys(setting.label for setting in self.settings if setting.weights))

    def places(self, method: str) -> tuple[list[int], np.ndarray]:
        """Where a method's settings are, and their weights, float64 [points, objectives]."""
        places = [index for index, setting in enumerate(self.settings) if setting.label == method and setting.weights]
        return places, np.array([self.settings[index].weights for index in places], dtype=np.float64)

    def of(self, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A method's weights [points, objectives], its z [points, prompts, objectives] with answers averaged, and the
        same with degenerate answers at the hypervolume's reference: worth nothing."""
        places, weights = self.places(method)
        return weights, self.z[places].mean(axis=2), self.sound(self.z)[places].mean(axis=2)

    def sound(self, z: np.ndarray) -> np.ndarray:
        """``z`` [settings, prompts, answers, objectives] with degenerate answers at ``REFERENCE``: worth nothing."""
        return np.where(self.degenerate[..., None], REFERENCE, z)

    def surprise(self, index: int) -> float | None:
        """Nats a token of a setting's answers under the plain base; None where it judged none of them."""
        known = [text for text in self.texts[self.settings[index].key] if text.base_logprob is not None]
        tokens = sum(text.tokens for text in known)
        return -sum(text.base_logprob or 0.0 for text in known) / tokens if tokens else None


def standardised(raw: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Rewards [..., objectives] in standard deviations of the base's ``own`` [answers, objectives], from their mean."""
    spread = own.std(axis=0)
    return np.asarray((raw - own.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def summarise(table: RewardTable, draws: int, seed: int) -> dict[str, Any]:
    """The figures, ready for JSON. Intervals: 95 % bootstrap over prompts, the same resamples for all methods."""
    prompts = table.raw.shape[1]
    resamples = np.random.default_rng(seed).integers(prompts, size=(draws, prompts))
    figures = {method: _measured(table, method, resamples) for method in table.methods}
    return {
        "objectives": table.objectives,
        "prompts": int(prompts),
        "answers": int(table.raw.shape[2]),
        "reference": REFERENCE,
        "settings": [_setting(table, index, draws, seed) for index in range(len(table.settings))],
        "methods": {method: _intervals(values) for method, values in figures.items()},
        "differences": _differences(table, figures, resamples),
    }


def _setting(table: RewardTable, index: int, draws: int, seed: int) -> dict[str, Any]:
    setting = table.settings[index]
    texts = table.texts[setting.key]
    row: dict[str, Any] = {
        "method": setting.label,
        "weights": dict(zip(table.objectives, setting.weights, strict=False)),
    }
    for place, objective in enumerate(table.objectives):
        mean, low, high = bootstrap_mean(table.raw[index, :, :, place], draws=draws, seed=seed)
        row[objective] = {"mean": mean, "low": low, "high": high, "z": float(table.z[index, ..., place].mean())}
    surprise = table.surprise(index)
    row["base_perplexity"] = None if surprise is None else float(np.exp(surprise))
    row["tokens"] = float(np.mean([text.tokens for text in texts]))
    row["degenerate"] = float(table.degenerate[index].mean())
    row["cut"] = float(np.mean([text.finish_reason == "length" for text in texts]))
    for n in (1, 2):
        # Texts of single words have no pairs.
        row[f"distinct_{n}"] = _finite(distinct([text.text for text in texts], n))
    return row


def _measures(weights: np.ndarray, points: np.ndarray, objectives: Sequence[str]) -> dict[str, float]:
    reference = [REFERENCE] * len(objectives)
    measures = {
        "hypervolume": hypervolume(points, reference),
        "inner_product": inner_product(points, weights),
        "sparsity": sparsity(points),
        "spacing": spacing(points),
    }
    for place, objective in enumerate(objectives):
        measures[f"kendall_{objective}"] = kendall(weights[:, place], points[:, place])
        measures[f"spearman_{objective}"] = spearman(weights[:, place], points[:, place])
        measures[f"monotone_{objective}"] = monotone_share(weights[:, place], points[:, place])
    return measures


def _measured(
    table: RewardTable, method: str, resamples: np.ndarray, points: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Every measure of a method, float64 [1 + draws]: over all prompts, then over each of the resamples. ``points``:
    only those of its settings, by their number among its own."""
    weights, z, sound = (values if points is None else values[points] for values in table.of(method))
    reference = [REFERENCE] * len(table.objectives)
    rows = []
    for picks in (slice(None), *resamples):
        measures = _measures(weights, z[:, picks].mean(axis=1), table.objectives)
        rows.append(measures | {"hypervolume_sound": hypervolume(sound[:, picks].mean(axis=1), reference)})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _intervals(figures: Mapping[str, np.ndarray]) -> dict[str, Any]:
    intervals: dict[str, Any] = {}
    for name, values in figures.items():
        known = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (float("nan"), float("nan"))
        intervals[name] = {"value": _finite(values[0]), "low": _finite(low), "high": _finite(high)}
    return intervals


def _differences(
    table: RewardTable, figures: Mapping[str, Mapping[str, np.ndarray]], resamples: np.ndarray
) -> list[dict[str, Any]]:
    """Every method minus every one before it, on the same prompts and seeds and at the ``points`` preferences that both
    were asked for; methods that share none are left out. Hypervolume, the same with degenerate answers worth nothing,
    and mean mu . z. ``p``: twice the share of resamples on the other side of zero, at least 1 / draws."""
    asked = {method: [table.settings[index].place for index in table.places(method)[0]] for method in figures}
    rows = []
    for one, other in ((one, other) for place, one in enumerate(figures) for other in list(figures)[:place]):
        shared = [place for place in asked[one] if place in asked[other]]
        if not shared:
            continue
        first, second = (
            figures[method]
            if len(shared) == len(asked[method])
            else _measured(table, method, resamples, [asked[method].index(place) for place in shared])
            for method in (one, other)
        )
        row: dict[str, Any] = {"method": one, "minus": other, "points": len(shared)}
        for name in COMPARED:
            gaps = first[name] - second[name]
            low, high = np.quantile(gaps[1:], [0.025, 0.975])
            beyond = min((gaps[1:] <= 0).mean(), (gaps[1:] >= 0).mean())
            row[name] = {
                "value": float(gaps[0]),
                "low": float(low),
                "high": float(high),
                "p": float(max(2 * beyond, 1 / len(resamples))),
            }
        rows.append(row)
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
