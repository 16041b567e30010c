"""The Triton kernels of routing, against the reference, which other tests hold against loops in float64."""

import random

import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not on this platform")

from kernel_device import DEVICE
from triton_interpreter import MARKS

from ladle.kernels import step_tables
from ladle.kernels.gpu import route_tokens as kernels
from ladle.kernels.reference import route_tokens as routing
from ladle.kernels.reference import step as step_reference

pytestmark = MARKS

BLOCK = 64


@pytest.fixture
def rng() -> random.Random:
    seed = fresh_seed()
    torch.manual_seed(seed)
    return random.Random(seed)


def longs(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def draw_scores(rng: random.Random, n: int, experts: int) -> Tensor:
    """With many equal ones."""
    rows = [[rng.choice([-1.0, 0.0, -0.0, 0.5, rng.gauss(0, 1)]) for _ in range(experts)] for _ in range(n)]
    return torch.tensor(rows, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_best_expert_speaks_and_stays(dtype: torch.dtype, rng: random.Random) -> None:
    for experts in (1, 3, 17):
        n = 6
        scores = draw_scores(rng, n, experts).to(dtype)
        previous = longs([rng.randint(-1, experts - 1) for _ in range(n)])
        stayed, stay = longs([rng.randint(0, 4) for _ in range(n)]), longs([rng.randint(1, 4) for _ in range(n)])
        chosen = kernels.route_tokens(scores, previous, stayed, stay)
        assert torch.equal(chosen, routing.route_tokens(scores, previous, stayed, stay))
        columns = torch.stack([previous, stayed, stay], 1)
        assert torch.equal(kernels.route_tokens(scores.repeat(1, 2)[:, :experts], *columns.unbind(1)), chosen)


def test_mixtures_are_those_of_the_reference(rng: random.Random) -> None:
    scores = draw_scores(rng, 6, 5)
    scores[0] = torch.tensor([2.0, 2.0, 2.0, -torch.inf, 1.0])
    for top in (1, 2, 5):
        experts, shares = kernels.mix_experts(scores, top)
        expected = routing.mix_experts(scores, top)
        # Zeros of both signs are equal, and so of two the first comes first; a sort may see it otherwise.
        assert torch.equal(scores.gather(1, experts), scores.gather(1, expected[0]))
        torch.testing.assert_close(shares, expected[1], rtol=1e-6, atol=1e-7)
        assert top > 1 or torch.equal(shares, torch.ones_like(shares))


def test_nothing_to_route() -> None:
    none = longs([])
    assert kernels.route_tokens(torch.empty(0, 3, device=DEVICE), none, none, none).shape == (0,)
    experts, shares = kernels.mix_experts(torch.empty(0, 3, device=DEVICE), 2)
    assert experts.shape == shares.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_rule_equals_float64(dtype: torch.dtype, rng: random.Random) -> None:
    n, most, vocabulary = 5, 3, 2 * BLOCK + 3
    router, experts = torch.randn(n, vocabulary) * 4, torch.randn(n, most, vocabulary) * 4
    router, experts = router.to(DEVICE, dtype), experts.to(DEVICE, dtype)
    mixture = torch.softmax(torch.randn(n, most, dtype=torch.float64), -1).to(DEVICE)
    mixture[0] = torch.tensor([0.0, 1.0, 0.0])
    experts[0, 0] = torch.nan  # has no share
    complement = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0], device=DEVICE)
    weight = torch.tensor([1.0, 1.0, 0.0, 0.7, 1.5], device=DEVICE)
    normalize = torch.tensor([False, False, False, True, True], device=DEVICE)
    router[1] = torch.inf  # complement 0
    given = (mixture, complement, weight, normalize)
    made = kernels.combine_routed(router, experts, *given, block=BLOCK)
    assert made.dtype == torch.float32
    for i in range(n):
        a, b = float(complement[i]), float(weight[i])
        total = a + b if normalize[i] else 1.0
        expected = torch.zeros(vocabulary, dtype=torch.float64, device=DEVICE)
        if a:
            expected += a / total * torch.log_softmax(router[i].double(), -1)
        if b:
            taken = mixture[i] != 0
            mixed = torch.log_softmax(experts[i, taken].double(), -1) + mixture[i, taken].log()[:, None]
            expected += b / total * torch.logsumexp(mixed, 0)
        # Log-probabilities of up to 40 in size, twice: each rounds to 2e-6, their normalisers to 1e-6.
        assert (made[i].double() - expected).abs().max() < 2e-5, i
    torch.testing.assert_close(made, routing.combine_routed(router, experts, *given), rtol=0, atol=2e-5)


def test_rows_and_weights_are_laid_out_without_the_host(rng: random.Random) -> None:
    n, experts, most = 10, 4, 3
    scores = torch.randn(n, experts, device=DEVICE)
    scores[9, 1] = torch.nan
    top = longs([1, 1, 1, 1, 2, 3, 1, 2, 1, 2])
    given = {
        "previous": longs([rng.randint(-1, experts - 1) for _ in range(n)]),
        "stayed": longs([rng.randint(0, 3) for _ in range(n)]),
        "stay": torch.where(top == 1, longs([rng.randint(1, 4) for _ in range(n)]), 1),
        "top": top,
        "most": most,
        "asked": torch.tensor([rng.random() < 0.7 for _ in range(8)] + [False, True], device=DEVICE),
        "router_rows": torch.randperm(n).to(DEVICE),
        "expert_rows": torch.randperm(n * experts).view(n, experts).to(DEVICE),
        "complement": torch.rand(n, device=DEVICE) * 2,
        "weight": torch.rand(n, device=DEVICE) + 0.5,
        "exact": torch.tensor([rng.random() < 0.5 for _ in range(n)], device=DEVICE),
    }
    made, expected = kernels.route_rows(scores, **given), step_reference.route_rows(scores, **given)
    for name in ("rules", "leading", "stayed"):
        assert torch.equal(getattr(made, name), getattr(expected, name)), name
    torch.testing.assert_close(made.weights, expected.weights, rtol=1e-6, atol=1e-7, equal_nan=True)
    taken = expected.weights != 0
    assert torch.equal(made.source_rows[taken], expected.source_rows[taken])
    # What is padded is a row nevertheless.
    assert ((made.source_rows >= 0) & (made.source_rows < n * experts)).all()
    assert (made.weights[9, 1:3]).isnan().all()
    assert int(made.rules[8]) == step_tables.LINEAR and made.weights[8].tolist() == [1.0, 0.0, 0.0, 0.0]
