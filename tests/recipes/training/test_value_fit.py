from pathlib import Path

import numpy as np
import pytest
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.training.lora import new_adapter, save_adapter
from ladle.recipes.training.value import Rated, hidden_size
from ladle.recipes.training.value_fit import COUNTS, FRACTIONS, fits, predictions, store_fits, stored_fits


def _case(random: np.random.Generator) -> tuple[list[list[np.ndarray]], list[Rated]]:
    rated, predicted = [], []
    for name in "abcde":
        lengths = [int(n) for n in random.integers(1, 40, size=7)]
        rewards = random.normal(size=7)
        rated.append(Rated(name, tuple((1,) * n for n in lengths), tuple(rewards.tolist())))
        predicted.append([0.5 * r + random.normal(size=n) for n, r in zip(lengths, rewards, strict=True)])
    return predicted, rated


def test_figures_equal_their_definitions(random: np.random.Generator) -> None:
    predicted, rated = _case(random)
    found = {fit.after: fit for fit in fits("x", predicted, rated, draws=40, seed=1)}
    rows = [(row, r) for rows, p in zip(predicted, rated, strict=True) for row, r in zip(rows, p.rewards, strict=True)]
    for fraction in FRACTIONS:
        pairs = [(row[int(np.ceil(len(row) * fraction)) - 1], r) for row, r in rows]
        _same(found[f"{100 * fraction:g} %"], pairs)
    for count in COUNTS:
        pairs = [(row[count - 1], r) for row, r in rows if len(row) > count]
        if f"{count} tokens" in found:
            _same(found[f"{count} tokens"], pairs)
    assert "4 tokens" in found


def _same(fit: object, pairs: list[tuple[float, float]]) -> None:
    v, r = np.array(pairs).T
    assert fit.answers == len(pairs)  # type: ignore[attr-defined]
    expected = 1 - ((r - v) ** 2).mean() / r.var()
    assert fit.explained == pytest.approx(expected, rel=1e-8, abs=1e-9)  # type: ignore[attr-defined]
    assert fit.correlation == pytest.approx(np.corrcoef(v, r)[0, 1], rel=1e-8, abs=1e-9)  # type: ignore[attr-defined]


def test_a_perfect_value_explains_everything_and_a_constant_nothing(random: np.random.Generator) -> None:
    _, rated = _case(random)
    perfect = [[np.full(len(a), r) for a, r in zip(p.answers, p.rewards, strict=True)] for p in rated]
    # Only the shares count every answer; after many tokens a resample may hold one answer alone: nothing varies.
    for fit in fits("x", perfect, rated, draws=20, seed=1)[: len(FRACTIONS)]:
        figures = (fit.explained_low, fit.explained, fit.explained_high, fit.correlation_low, fit.correlation)
        np.testing.assert_allclose(figures, 1.0, atol=1e-9)
    mean = float(np.mean([r for p in rated for r in p.rewards]))
    constant = [[np.full(len(a), mean) for a in p.answers] for p in rated]
    whole = fits("x", constant, rated, draws=20, seed=1)[0]
    assert whole.explained == pytest.approx(0.0, abs=1e-9)


def test_predictions_are_those_of_the_stored_adapter(
    base: LoadedBase, random: np.random.Generator, tmp_path: Path
) -> None:
    model = new_adapter(base, AdapterConfig(2, 4, ("q_proj", "o_proj"), seed=5), "default")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    weight = torch.tensor(random.normal(size=hidden_size(base)), dtype=torch.float32)
    save_adapter(model, tmp_path / "value", "some/base", {"weight": weight, "bias": torch.tensor([0.25])})
    model.float()
    answers = tuple(tuple(random.integers(5, 300, size=n).tolist()) for n in (4, 2))
    prompt = base.prompt_ids("rain")
    expected = [
        model(torch.tensor([[*prompt, *a]]), output_hidden_states=True).hidden_states[-1][0, len(prompt) :] @ weight
        for a in answers
    ]
    model.unload()
    [found] = predictions(base, tmp_path / "value", [Rated("rain", answers, (0.0, 1.0))])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy() + 0.25, rtol=1e-4, atol=1e-4)


def test_fits_survive_being_stored(random: np.random.Generator, tmp_path: Path) -> None:
    found = fits("x", *_case(random), draws=20, seed=1)
    store_fits(found, tmp_path / "fits.json")
    assert stored_fits(tmp_path / "fits.json") == found
