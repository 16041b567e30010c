"""Choosing among experts and combining them with the router, against loops in float64."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

from ladle.kernels.dispatch import combine_routed, mix_experts, route_tokens


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))


def log_softmax(row: Sequence[float]) -> list[float]:
    best = max(row)
    total = best + math.log(math.fsum(math.exp(value - best) for value in row))
    return [value - total for value in row]


def by_hand(
    router: Sequence[float],
    experts: Sequence[Sequence[float]],
    mixture: Sequence[float],
    a: float,
    b: float,
    divided: bool,
) -> list[float]:
    """S of one row, from the formulas."""
    own, theirs = log_softmax(router), [log_softmax(row) for row in experts]
    scores = []
    for token, value in enumerate(own):
        mass = math.fsum(share * math.exp(row[token]) for share, row in zip(mixture, theirs, strict=True))
        scores.append((a * value + b * math.log(mass)) / (a + b if divided else 1.0))
    return scores


def draw(rows: int, m: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of routers and experts, and shares that sum to 1."""
    router, experts = torch.randn(rows, vocabulary) * 4, torch.randn(rows, m, vocabulary) * 4
    return router.to(dtype), experts.to(dtype), torch.softmax(torch.randn(rows, m, dtype=torch.float64), -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("m", [1, 2, 4])
def test_the_rule_equals_a_loop_in_float64(dtype: torch.dtype, m: int) -> None:
    torch.manual_seed(fresh_seed())
    router, experts, mixture = draw(9, m, 37, dtype)
    complement, weight = torch.rand(9, dtype=torch.float64) * 2, torch.rand(9, dtype=torch.float64) * 2 + 0.1
    complement[0], weight[1] = 0, 1
    normalize = torch.rand(9) < 0.5
    if m > 1:
        mixture[2] = torch.tensor([0.0] * (m - 1) + [1.0])
    scores = combine_routed(router, experts, mixture, complement, weight, normalize)
    assert scores.shape == (9, 37) and scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = [
        by_hand(
            router[i].tolist(), experts[i].tolist(), mixture[i].tolist(), complement[i].item(), weight[i].item(),
            bool(normalize[i]),
        )
        for i in range(9)
    ]  # fmt: skip
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(scores.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("divided", [False, True])
def test_a_complement_of_0_is_the_expert_alone(divided: bool) -> None:
    """Whatever the router holds, and bit for bit at weight 1."""
    torch.manual_seed(fresh_seed())
    router, experts, _ = draw(4, 1, 50)
    router[0], router[1], router[2, 7] = torch.inf, torch.nan, -torch.inf
    experts[3, 0, :20] = -torch.inf
    ones, off = torch.ones(4, 1), torch.zeros(4)
    expected = torch.log_softmax(experts[:, 0], dim=-1)
    alone = combine_routed(router, experts, ones, off, torch.ones(4), torch.full((4,), divided))
    assert same_bits(alone, expected)
    # Also beside rows with other coefficients.
    weight = torch.tensor([1.0, 0.5, 1.0, 3.0])
    mixed = combine_routed(router, experts, ones, off, weight, torch.full((4,), divided))
    scale = torch.ones(4) if divided else weight
    assert same_bits(mixed, scale[:, None] * expected)
    assert (mixed[3, :20] == -torch.inf).all() and not mixed.isnan().any()


def test_a_weight_of_0_is_the_router_alone() -> None:
    torch.manual_seed(fresh_seed())
    router, experts, _ = draw(3, 2, 50)
    experts[0], experts[1] = torch.inf, torch.nan
    for mixture in (torch.zeros(3, 2), torch.tensor([[0.5, 0.5]] * 3), torch.tensor([[0.0, 1.0]] * 3)):
        alone = combine_routed(
            router, experts, mixture, torch.ones(3), torch.zeros(3), torch.tensor([True, False, True])
        )
        assert torch.equal(alone, torch.log_softmax(router, dim=-1))


def test_an_expert_without_a_share_is_left_out_bit_for_bit() -> None:
    torch.manual_seed(fresh_seed())
    router, experts, _ = draw(4, 3, 50)
    complement, weight, normalize = torch.rand(4), torch.rand(4) + 0.1, torch.rand(4) < 0.5
    chosen = torch.randint(0, 3, (4,))
    mixture = torch.nn.functional.one_hot(chosen, 3).double()
    hard = experts[torch.arange(4), chosen][:, None]
    expected = combine_routed(router, hard, torch.ones(4, 1), complement, weight, normalize)
    for poison in (torch.inf, torch.nan, -torch.inf):
        others = torch.where(mixture[..., None] == 0, poison, experts)
        assert same_bits(combine_routed(router, others, mixture, complement, weight, normalize), expected)
    pair = torch.tensor([[0.25, 0.75, 0.0]] * 4)
    two = combine_routed(router, experts[:, :2].contiguous(), pair[:, :2], complement, weight, normalize)
    experts[:, 2] = torch.nan
    assert same_bits(combine_routed(router, experts, pair, complement, weight, normalize), two)


def test_equal_experts_are_that_expert_whatever_their_shares() -> None:
    torch.manual_seed(fresh_seed())
    router, experts, mixture = draw(5, 3, 60, torch.float64)
    experts[:] = experts[:, :1]
    a, b, off = torch.ones(5), torch.ones(5), torch.zeros(5, dtype=torch.bool)
    soft = combine_routed(router, experts, mixture, a, b, off)
    hard = combine_routed(router, experts[:, :1], torch.ones(5, 1), a, b, off)
    torch.testing.assert_close(soft, hard, rtol=1e-12, atol=1e-12)


def test_the_sum_sharpens_and_normalize_undoes_it() -> None:
    """Router and expert that agree: their distribution at half the temperature, and their distribution."""
    torch.manual_seed(fresh_seed())
    router, _, _ = draw(4, 1, 60, torch.float64)
    one, experts = torch.ones(4), router[:, None]
    sharp = combine_routed(router, experts, torch.ones(4, 1), one, one, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(torch.softmax(sharp, -1), torch.softmax(router * 2, -1), rtol=1e-12, atol=1e-15)
    plain = combine_routed(router, experts, torch.ones(4, 1), one, one, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(plain, torch.log_softmax(router, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", [1, 3])
def test_a_row_does_not_depend_on_the_others(m: int) -> None:
    torch.manual_seed(fresh_seed())
    router, experts, mixture = draw(7, m, 203)
    complement, weight, normalize = torch.rand(7), torch.rand(7) + 0.1, torch.rand(7) < 0.5
    complement[:3], weight[:2] = torch.tensor([0.0, 1.0, 0.0]), 1.0
    if m > 1:
        mixture[0] = torch.tensor([0.0, 1.0, 0.0])
    together = combine_routed(router, experts, mixture, complement, weight, normalize)
    for i in range(7):
        one = slice(i, i + 1)
        alone = combine_routed(router[one], experts[one], mixture[one], complement[one], weight[one], normalize[one])
        assert same_bits(alone, together[one])


def test_inputs_stay_as_they_are() -> None:
    torch.manual_seed(fresh_seed())
    router, experts, mixture = draw(3, 2, 20)
    before = router.clone(), experts.clone(), mixture.clone()
    combine_routed(
        router, experts, mixture, torch.full((3,), 0.5), torch.full((3,), 2.0), torch.ones(3, dtype=torch.bool)
    )
    assert all(torch.equal(a, b) for a, b in zip((router, experts, mixture), before, strict=True))


def test_the_best_expert_speaks_and_stays() -> None:
    """Token by token against a loop that keeps its own account of who spoke how long."""
    rng = random.Random(fresh_seed())
    rows, experts = 12, 4
    stay = [rng.randint(1, 6) for _ in range(rows)]
    previous, stayed = [-1] * rows, [0] * rows
    switches = kept = 0
    for _ in range(60):
        scores = [[rng.choice([-1.0, 0.0, 0.5, rng.gauss(0, 1)]) for _ in range(experts)] for _ in range(rows)]
        chosen = route_tokens(torch.tensor(scores), ints(previous), ints(stayed), ints(stay))
        assert chosen.dtype == torch.int64 and chosen.shape == (rows,)
        for i, expert in enumerate(chosen.tolist()):
            # The greatest, and the first of equal ones.
            best = min(range(experts), key=lambda index: (-scores[i][index], index))
            held = previous[i] >= 0 and stayed[i] < stay[i]
            assert expert == (previous[i] if held else best)
            kept += held and best != expert
            switches += expert != previous[i]
            stayed[i] = stayed[i] + 1 if expert == previous[i] else 1
            previous[i] = expert
    assert kept > 0 and switches > rows


def test_a_switch_lasts_at_least_as_long_as_asked() -> None:
    rng = random.Random(fresh_seed())
    stay = rng.randint(2, 7)
    spoken: list[int] = []
    previous, stayed = -1, 0
    for _ in range(200):
        scores = torch.tensor([[rng.gauss(0, 1) for _ in range(3)]])
        expert = int(route_tokens(scores, ints([previous]), ints([stayed]), ints([stay])))
        stayed = stayed + 1 if expert == previous else 1
        previous = expert
        spoken.append(expert)
    runs = [1]
    for before, after in pairwise(spoken):
        if before == after:
            runs[-1] += 1
        else:
            runs.append(1)
    assert len(runs) > 3 and min(runs[:-1]) >= stay


def test_equal_scores_are_the_first_expert() -> None:
    nobody, none = torch.full((3,), -1), torch.zeros(3, dtype=torch.int64)
    scores = torch.tensor([[0.0, 0.0, 0.0], [-1.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    assert route_tokens(scores, nobody, none, torch.ones(3, dtype=torch.int64)).tolist() == [0, 1, 0]
    experts, shares = mix_experts(scores, 2)
    assert experts.tolist() == [[0, 1], [1, 2], [0, 2]] and torch.equal(shares, torch.full((3, 2), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_mixtures_are_the_softmax_over_the_best(dtype: torch.dtype) -> None:
    torch.manual_seed(fresh_seed())
    scores = (torch.randn(8, 5) * 2).to(dtype)
    for top in range(1, 6):
        experts, shares = mix_experts(scores, top)
        assert experts.shape == shares.shape == (8, top)
        assert shares.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for i in range(8):
            row = scores[i].tolist()
            best = sorted(range(5), key=lambda index: (-row[index], index))[:top]
            assert experts[i].tolist() == best
            total = math.fsum(math.exp(row[index]) for index in best)
            assert shares[i].tolist() == pytest.approx([math.exp(row[index]) / total for index in best], rel=1e-5)
        if top == 1:
            assert torch.equal(shares, torch.ones_like(shares))
            chosen = route_tokens(scores, torch.full((8,), -1), torch.zeros(8).long(), torch.ones(8).long())
            assert torch.equal(experts[:, 0], chosen)
