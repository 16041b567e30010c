"""The deferral logit: its loss is the mixture's, and the fit finds who writes better where it can be told."""

import math

import numpy as np
import pytest
import torch
from seeds import fresh_seed

from ladle.recipes.experts.deferral import Choices, deferral_loss, fit_deferral
from ladle.recipes.routing_config import DeferralConfig


def test_the_loss_is_that_of_the_mixture() -> None:
    random = np.random.default_rng(fresh_seed())
    logits, own, expert = random.normal(size=7), -random.exponential(size=7), -random.exponential(size=7)
    share = 1 / (1 + np.exp(-logits))
    expected = -np.log(share * np.exp(expert) + (1 - share) * np.exp(own)).mean()
    found = deferral_loss(*(torch.tensor(part, dtype=torch.float64) for part in (logits, own, expert)))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_fit_defers_where_the_expert_is_better() -> None:
    random = np.random.default_rng(fresh_seed())
    states = torch.tensor(random.normal(3.0, 2.0, size=(400, 6)), dtype=torch.float32)
    better = states[:, 2] > 3.0
    good, bad = torch.tensor(-0.1), torch.tensor(-3.0)
    choices = Choices(states, torch.where(better, bad, good), torch.where(better, good, bad))
    weight, bias = fit_deferral(choices, DeferralConfig(samples=1, steps=300, learning_rate=0.05, decay=1e-4))
    defers = states @ weight + bias > 0
    assert float((defers == better).float().mean()) > 0.95 and math.isfinite(bias)
