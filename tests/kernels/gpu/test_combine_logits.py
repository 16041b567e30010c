"""Score rows made by the Triton kernels, against loops in float64 and against the bits of plain torch."""

import math
import random

import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not on this platform")

from kernel_device import DEVICE
from triton_interpreter import MARKS

from ladle.kernels.gpu import combine_logits as kernels
from ladle.kernels.reference import operations as reference

pytestmark = MARKS

BLOCK = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BOUND = 4 * 2.0**-24
"""Relative to the sum of the terms' sizes, one for all dtypes: half precision is only how logits are stored, they are
exact in float32, and each product and sum rounds once."""


@pytest.fixture
def rng() -> random.Random:
    seed = fresh_seed()
    torch.manual_seed(seed)
    return random.Random(seed)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


def draw_logits(rows: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(rows, vocabulary, device=DEVICE) * 5).to(dtype)


def draw_sources(n: int, k: int, rows: int) -> tuple[Tensor, Tensor]:
    weights = torch.randn(n, k, dtype=torch.float64)
    weights[torch.rand(n, k) < 0.3] = 0
    weights[torch.rand(n, k) < 0.3] = 1
    return torch.randint(0, rows, (n, k)).to(DEVICE), weights.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("vocabulary", "k"),
    [
        (1, 1),  # one token
        (BLOCK - 1, 2),  # less than one tile
        (BLOCK, 3),  # exactly one
        (2 * BLOCK + 1, 5),  # a tile with a single token
    ],
)
def test_linear_sums_equal_float64_and_the_bits_of_torch(
    vocabulary: int, k: int, dtype: torch.dtype, rng: random.Random
) -> None:
    logits = draw_logits(7, vocabulary, dtype)
    source_rows, weights = draw_sources(4, k, 7)
    made = kernels.combine_logits(logits, source_rows, weights, block=BLOCK)
    terms = logits.double()[source_rows] * weights.float().double()[..., None]
    assert made.dtype == torch.float32
    assert ((made.double() - terms.sum(1)).abs() <= BOUND * terms.abs().sum(1)).all()
    assert same_bits(made, reference.combine_logits(logits, source_rows, weights))


def test_rows_that_are_not_contiguous(rng: random.Random) -> None:
    source_rows, weights = draw_sources(3, 2, 5)
    wide = draw_logits(5, 150)
    for logits in (wide[:, 3:103], draw_logits(100, 5).T, wide[::2][:, :100].expand(3, 100)):
        index = source_rows.clamp(max=len(logits) - 1)
        expected = reference.combine_logits(logits.contiguous(), index, weights)
        assert same_bits(kernels.combine_logits(logits, index, weights, block=BLOCK), expected)
        columns = index.repeat_interleave(2, 1)[:, ::2], weights.repeat_interleave(2, 1)[:, ::2]
        assert same_bits(kernels.combine_logits(logits, *columns, block=BLOCK), expected)


def test_no_sequences() -> None:
    source_rows, weights = torch.empty(0, 2, dtype=torch.int64, device=DEVICE), torch.empty(0, 2, device=DEVICE)
    assert kernels.combine_logits(draw_logits(3, 40), source_rows, weights).shape == (0, 40)
    assert kernels.combine_divergence(draw_logits(3, 40), source_rows, weights, torch.empty(0)).shape == (0, 40)


def test_a_source_of_weight_zero_is_not_looked_at(rng: random.Random) -> None:
    logits = draw_logits(4, 90)
    logits[2], logits[3, ::2] = torch.nan, -torch.inf
    source_rows, weights = torch.tensor([[0, 2, 3], [1, 3, 2]]), torch.tensor([[1.0, 0, 0]] * 2, dtype=torch.float64)
    source_rows, weights = source_rows.to(DEVICE), weights.to(DEVICE)
    assert same_bits(kernels.combine_logits(logits, source_rows, weights, block=BLOCK), logits[:2])
    ones = torch.ones(2, device=DEVICE)
    alone = kernels.combine_divergence(logits, source_rows, weights, ones, block=BLOCK)
    assert torch.allclose(alone, torch.log_softmax(logits[:2], -1), atol=2e-6)


def test_what_is_not_finite_stays_what_it_is(rng: random.Random) -> None:
    logits = draw_logits(3, 70)
    logits[0, 3], logits[1, 3:9], logits[2, 69] = torch.nan, -torch.inf, torch.inf
    source_rows, weights = torch.tensor([[0, 1], [1, 2], [2, 1]]), torch.tensor([[1.0, 0.5], [2.0, -1.0], [1.0, 1.0]])
    made = kernels.combine_logits(logits, source_rows.to(DEVICE), weights.to(DEVICE), block=BLOCK)
    expected = reference.combine_logits(logits, source_rows.to(DEVICE), weights.to(DEVICE))
    assert torch.equal(made.isnan(), expected.isnan())
    assert torch.equal(made.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_divergences_equal_float64(dtype: torch.dtype, rng: random.Random) -> None:
    logits = draw_logits(6, 2 * BLOCK + 5, dtype)
    source_rows, weights = torch.randint(0, 6, (4, 3)).to(DEVICE), torch.rand(4, 3, dtype=torch.float64).to(DEVICE)
    weights[0, 1] = weights[1, 0] = 0
    alpha = torch.tensor([0.3, 1.0, 2.5, rng.uniform(0.1, 3)], device=DEVICE)
    made = kernels.combine_divergence(logits, source_rows, weights, alpha, block=BLOCK)
    for i in range(4):
        p = torch.softmax(logits[source_rows[i]].double(), -1)
        a = float(alpha[i])
        expected = -torch.log((weights[i, :, None] * p**-a).sum(0)) / a
        # The normalisers' sums round about as often as there are tiles, and alpha divides what the logarithm rounds.
        assert (made[i].double() - expected).abs().max() < 2e-5 * max(1, 1 / a)


def test_a_policy_that_rules_a_token_out_rules_it_out_of_the_divergence(rng: random.Random) -> None:
    logits = draw_logits(2, 70)
    logits[0, 10] = -torch.inf
    source_rows, weights = torch.tensor([[0, 1]]).to(DEVICE), torch.tensor([[0.5, 0.5]], device=DEVICE)
    ones = torch.ones(1, device=DEVICE)
    made = kernels.combine_divergence(logits, source_rows, weights, ones, block=BLOCK)
    assert made[0, 10] == -torch.inf and made[0].isfinite().sum() == 69


def test_penalties_have_the_bits_of_torch(rng: random.Random) -> None:
    scores = draw_logits(3, 100)
    scores[0, 5] = -torch.inf
    counts = torch.randint(0, 4, (3, 100), dtype=torch.int32, device=DEVICE)
    seen = (counts > 0) | (torch.rand(3, 100, device=DEVICE) < 0.2)
    options = [torch.rand(3, device=DEVICE) + 0.5 for _ in range(3)]
    expected = reference.apply_penalties(scores.clone(), counts, seen, *options)
    assert same_bits(kernels.apply_penalties(scores.clone(), counts, seen, *options, block=BLOCK), expected)
    for i, j in ((1, 7), (2, 99), (0, 5)):
        repetition, presence, frequency = (float(option[i]) for option in options)
        score, count = float(scores[i, j]), int(counts[i, j])
        if seen[i, j]:
            score = score / repetition if score > 0 else score * repetition
        score -= (presence if count else 0.0) + frequency * count
        assert float(expected[i, j]) == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("count", [1, 17])
def test_candidate_values(count: int, rng: random.Random) -> None:
    """One candidate, and more than are looked at together."""
    scores = draw_logits(3, 2 * BLOCK + 3)
    candidates = torch.stack([torch.randperm(scores.shape[1])[:count] for _ in range(3)]).to(DEVICE)
    values = torch.randn(3, count, device=DEVICE) * 3
    centred, restricted = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    given = scores.clone()
    made = kernels.add_candidate_values(
        given, candidates, values, centred.to(DEVICE), restricted.to(DEVICE), block=BLOCK
    )
    assert made is given
    for i in range(3):
        mean = math.fsum(values[i].tolist()) / count if centred[i] else 0.0
        expected = scores[i].double() if not restricted[i] else torch.full_like(scores[i].double(), -torch.inf)
        for token, value in zip(candidates[i].tolist(), values[i].tolist(), strict=True):
            expected[token] = float(scores[i, token]) + value - mean
        torch.testing.assert_close(made[i].double(), expected, rtol=1e-6, atol=1e-5)


def test_masks_rule_out_what_the_reference_rules_out(rng: random.Random) -> None:
    base, scores = draw_logits(5, 150, torch.bfloat16), draw_logits(5, 150)
    scores[4, 2] = torch.nan
    top_k, top_p = torch.tensor([4, 0, 0, 0, 3]), torch.tensor([1.0, 0.7, 1.0, 1.0, 1.0])
    relative = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0])
    options = [option.to(DEVICE) for option in (top_k, top_p, relative)]
    expected = reference.rule_out_implausible(scores.clone(), base.float(), *options)
    made = kernels.rule_out_implausible(scores.clone(), base, *options, block=BLOCK)
    assert torch.equal(made.isnan(), expected.isnan())
    assert torch.equal(made.nan_to_num(), expected.nan_to_num())
    assert (made[0] > -torch.inf).sum() < 150 and (made[3] > -torch.inf).all()
