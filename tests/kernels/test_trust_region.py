"""Scores drawn back to a KL budget."""

import math

import numpy as np
import pytest
import torch
from seeds import fresh_seed

from ladle.kernels.trust_region import within_budget


def kl(scores: torch.Tensor, base: torch.Tensor) -> float:
    """In float64, by the definition."""
    p, q = torch.log_softmax(scores.double(), -1), torch.log_softmax(base.double(), -1)
    return float(torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum())


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(fresh_seed())


def logits(draw: np.random.Generator, rows: int, spread: float = 3.0) -> torch.Tensor:
    return torch.from_numpy(draw.normal(0, spread, (rows, 400))).float()


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 60.0])
def test_a_budget_is_spent_and_kept(draw: np.random.Generator, spread: float) -> None:
    base = logits(draw, 12)
    scores = base + logits(draw, 12, spread)
    budget = torch.from_numpy(10.0 ** draw.uniform(-4, 1, 12))
    found = within_budget(scores, base, budget)
    for row in range(12):
        whole, left = kl(scores[row], base[row]), kl(found[row], base[row])
        if whole <= float(budget[row]):
            assert torch.equal(found[row], scores[row])
            continue
        assert left <= float(budget[row]) * (1 + 1e-3) + 1e-6
        # What is left unspent is small, and float32 has a say where the budget is.
        assert math.sqrt(left) >= (1 - 0.01) * math.sqrt(float(budget[row])) - 1e-3
        gap, moved = (scores - base)[row].double(), (found - base)[row].double()
        t = float((gap * moved).sum() / (gap * gap).sum())
        assert 0 < t < 1 and torch.allclose(moved, t * gap, atol=1e-4 * spread + 1e-4)


def test_rows_do_not_depend_on_each_other(draw: np.random.Generator) -> None:
    base = logits(draw, 5)
    scores, budget = base + logits(draw, 5), torch.tensor([1e-3, 1.0, 50.0, 0.1, 0.01])
    together = within_budget(scores, base, budget)
    for row in range(5):
        alone = within_budget(scores[row : row + 1], base[row : row + 1], budget[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_nothing_to_do_is_nothing_done(draw: np.random.Generator) -> None:
    base = logits(draw, 3)
    assert within_budget(base, base, torch.full((3,), 1e-6)) is base
    scores = base + 7.5  # a constant moves no probability
    assert within_budget(scores, base, torch.full((3,), 1e-3)) is scores


def test_tokens_that_are_ruled_out_stay_so(draw: np.random.Generator) -> None:
    base = logits(draw, 1)
    scores = base + logits(draw, 1, 5.0)
    scores[0, :350] = -torch.inf
    base[0, 380:] = -torch.inf
    found = within_budget(scores.clone(), base, torch.tensor([0.05]))
    assert torch.equal(found[0, :350], scores[0, :350]) and torch.equal(found[0, 380:], scores[0, 380:])
    assert kl(found[0, 350:380], base[0, 350:380]) == pytest.approx(0.05, rel=0.2)


def test_a_row_that_is_not_numbers_is_left_to_the_engine(draw: np.random.Generator) -> None:
    base, scores = logits(draw, 2), logits(draw, 2)
    scores[0, 3] = torch.nan
    found = within_budget(scores, base, torch.tensor([0.01, 0.01]))
    assert torch.equal(found[0].isnan(), scores[0].isnan()) and not found[1].isnan().any()
