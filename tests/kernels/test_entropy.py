"""Temperatures that follow the entropy: the formula in float64, and rows for which it has no meaning."""

import math

import pytest
import torch
from seeds import fresh_seed

from ladle.kernels.entropy import LEAST, entropy, entropy_temperatures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(fresh_seed())
    scores = (torch.randn(4, 50) * torch.tensor([0.01, 1.0, 4.0, 60.0])[:, None]).to(dtype)
    scores[1, 7:30] = -torch.inf
    temperatures = torch.tensor([0.7, 1.0, 0.3, 1.5], dtype=dtype)
    spreads, exponents = torch.tensor([0.5, 1.0, 0.3, 2.0]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    found = entropy_temperatures(scores, temperatures, spreads, exponents)
    for row in range(4):
        left = scores[row][scores[row] > -torch.inf].double()
        p = torch.softmax(left, dim=-1)
        nats = float(torch.special.entr(p).sum())
        assert float(entropy(scores[row : row + 1])) == pytest.approx(nats, abs=1e-5)
        temperature, spread = float(temperatures[row]), float(spreads[row])
        low, high = max(0.0, temperature - spread), temperature + spread
        wanted = low + (high - low) * (nats / math.log(len(left))) ** float(exponents[row])
        assert float(found[row]) == pytest.approx(wanted if wanted >= LEAST else 0.0, abs=1e-5)
        alone = entropy_temperatures(*(part[row : row + 1] for part in (scores, temperatures, spreads, exponents)))
        assert torch.equal(alone, found[row : row + 1]), "a row does not depend on the others"


def test_rows_without_a_choice_and_without_a_number() -> None:
    scores = torch.full((4, 6), -torch.inf)
    scores[0, 3] = 2.0
    scores[1, 1] = torch.nan
    scores[1, 2] = 1.0
    scores[3] = 1.0
    scores[3, 2] = 200.0
    found = entropy_temperatures(scores, torch.full((4,), 0.8), torch.full((4,), 0.9), torch.ones(4))
    assert found.tolist() == pytest.approx([0.8, 0.8, 0.8, 0.0]), "one token, NaN, none, and nothing in doubt: greedy"
