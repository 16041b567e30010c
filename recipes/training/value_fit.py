"""How well explicit values predict the final reward on prompts that they were not trained on."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.value import Rated, answer_values, hidden_size, load_head
from ladle.recipes.training.written_whole import written_whole

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
COUNTS = (4, 8, 16, 32)


@dataclass(frozen=True)
class ValueFit:
    """A value's fit after a part of each answer, with 95 % bootstrap intervals over prompts.

    Attributes:
        objective: whose reward it predicts.
        after: how much of the answer it has read: "25 %" of its tokens, rounded up, or "8 tokens", where only answers
            that are longer than that count.
        answers: number of answers.
        explained: explained variance, 1 - sum (r - V)^2 / sum (r - mean r)^2; 0 is as good as the mean of these very
            answers, and it may be negative.
        correlation: Pearson's, of V with the final reward.
    """

    objective: str
    after: str
    answers: int
    explained: float
    explained_low: float
    explained_high: float
    correlation: float
    correlation_low: float
    correlation_high: float


@torch.inference_mode()
def predictions(base: LoadedBase, folder: Path, rated: Sequence[Rated]) -> list[list[np.ndarray]]:
    """V after each token: by prompt and answer, float64 [tokens].

    Args:
        base: its weights are changed meanwhile and put back.
        folder: as `train_value` wrote it; the stored, rounded weights are what is judged.
        rated: the answers.
    """
    head = load_head(folder, hidden_size(base)).to(base.model.device)
    with merged(base, load_members(base, {"value": folder}), {"value": 1.0}):
        results = []
        for prompt in rated:
            read = answer_values(base.model, head, base.prompt_ids(prompt.prompt), prompt.answers)
            values = read.cpu().double().numpy()
            results.append([row[: len(answer)] for row, answer in zip(values, prompt.answers, strict=True)])
    return results


def fits(
    objective: str, predicted: Sequence[Sequence[np.ndarray]], rated: Sequence[Rated], *, draws: int, seed: int
) -> list[ValueFit]:
    """The fit after each of `FRACTIONS` and `COUNTS`; a count that fewer than two prompts have longer answers than is
    left out.

    Args:
        objective: named in the results.
        predicted: of `predictions`.
        rated: the same answers with their final rewards.
        draws: bootstrap resamples.
        seed: of the resampling.
    """
    results = []
    for point in (*FRACTIONS, *COUNTS):
        groups = [_pairs(values, prompt, point) for values, prompt in zip(predicted, rated, strict=True)]
        groups = [group for group in groups if len(group)]
        if len(groups) < 2:
            continue
        sums = np.stack([_sums(group) for group in groups])
        picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
        whole, resampled = _figures(sums.sum(axis=0)), _figures(sums[picks].sum(axis=1))
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        figures = [float(x) for i in range(2) for x in (whole[i], low[i], high[i])]
        after = f"{100 * point:g} %" if isinstance(point, float) else f"{point} tokens"
        results.append(ValueFit(objective, after, sum(map(len, groups)), *figures))
    return results


def _pairs(values: Sequence[np.ndarray], prompt: Rated, point: float | int) -> np.ndarray:
    """(V, final reward), float64 [answers, 2], of the answers that count at this point."""
    rows = []
    for row, reward in zip(values, prompt.rewards, strict=True):
        if isinstance(point, float):
            rows.append((row[math.ceil(point * len(row)) - 1], reward))
        elif len(row) > point:
            rows.append((row[point - 1], reward))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _sums(pairs: np.ndarray) -> np.ndarray:
    v, r = pairs.T
    return np.array([len(v), v.sum(), r.sum(), v @ v, r @ r, v @ r])


def _figures(sums: np.ndarray) -> np.ndarray:
    """(explained variance, correlation), [..., 2], from what `_sums` adds up, [..., 6]; 0 where nothing varies."""
    n, v, r, vv, rr, vr = np.moveaxis(sums, -1, 0)
    var_v, var_r, cov = vv - v * v / n, rr - r * r / n, vr - v * r / n
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = 1.0 - (rr - 2.0 * vr + vv) / var_r
        correlation = cov / np.sqrt(var_v * var_r)
    return np.nan_to_num(np.stack([explained, correlation], axis=-1), nan=0.0, posinf=0.0, neginf=0.0)


def write_fits(rows: Mapping[str, Sequence[ValueFit]], path: Path) -> None:
    """Writes a .csv file, one line a value and point, figures to three decimals."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["value", *ValueFit.__dataclass_fields__])
        for name, points in rows.items():
            for fit in points:
                writer.writerow([name, *(round(x, 3) if isinstance(x, float) else x for x in asdict(fit).values())])


def store_fits(points: Sequence[ValueFit], path: Path) -> None:
    """Keeps an intermediate result, whole or not at all."""
    with written_whole(path) as aside:
        aside.write_text(json.dumps([asdict(fit) for fit in points]), encoding="utf-8")


def stored_fits(path: Path) -> list[ValueFit]:
    """Reads what `store_fits` kept."""
    return [ValueFit(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
