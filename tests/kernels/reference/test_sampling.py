"""Truncation against transformers' warpers; draws against the probabilities they stand for."""

import math
import random

import numpy as np
import pytest
import torch
from seeds import fresh_seed
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ladle.kernels.reference.operations import gumbel, sample, truncation_threshold
from ladle.server.engine.scores.slot_tables import draw_keys

NO_IDS = torch.zeros(1, 1, dtype=torch.int64)


def _survivors(scores: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """transformers' order: top-k, top-p, min-p."""
    kept = scores[None].clone()
    if top_k:
        kept = TopKLogitsWarper(min(top_k, scores.shape[0]))(NO_IDS, kept)
    if top_p < 1:
        kept = TopPLogitsWarper(top_p)(NO_IDS, kept)
    if min_p > 0:
        kept = MinPLogitsWarper(min_p)(NO_IDS, kept)
    return kept[0] > -torch.inf


def _params(top_k: list[int], top_p: list[float], min_p: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(top_k), torch.tensor(top_p, dtype=torch.float32), torch.tensor(min_p, dtype=torch.float32)


def _keys(seeds: np.ndarray, positions: np.ndarray) -> Tensor:
    return torch.from_numpy(draw_keys(seeds.astype(np.uint64), positions.astype(np.int64)))


def _cuts_a_boundary(scores: Tensor, top_k: int, top_p: float) -> bool:
    """Whether a cumulative probability lies within rounding of top_p, where either answer is right."""
    kept = scores.double()
    if top_k:
        kept = kept.topk(min(top_k, kept.shape[0])).values
    mass = torch.softmax(kept.sort(descending=True).values, -1).cumsum(-1)
    return bool(((mass - top_p).abs() < 2e-5).any())


def test_truncation_sets_equal_transformers() -> None:
    rng = random.Random(seed := fresh_seed())
    generator = np.random.default_rng(seed)
    compared = 0
    for _ in range(40):
        vocabulary = rng.choice([3, 50, 129, 1000, 4000])
        spread = rng.choice([0.01, 0.3, 1, 5])  # 0.01: so flat that the first tries of the nucleus are too narrow
        n = rng.randint(1, 6)
        # Distinct scores, so that ties play no part.
        scores = torch.from_numpy(
            np.stack([generator.permutation(vocabulary) for _ in range(n)]) + generator.random((n, vocabulary)) * 0.5
        )
        scores = (torch.special.ndtri((scores + 0.5) / (vocabulary + 1)) * spread).float()
        top_k = [rng.choice([0, 0, 1, 2, 40, 200, vocabulary, vocabulary + 7]) for _ in range(n)]
        top_p = [rng.choice([1.0, 1.0, 1e-6, 0.1, 0.5, 0.9, 0.999]) for _ in range(n)]
        min_p = [rng.choice([0.0, 0.0, 0.05, 0.5, 1.0]) for _ in range(n)]
        thresholds = truncation_threshold(scores, *_params(top_k, top_p, min_p))
        for i in range(n):
            if top_p[i] < 1 and _cuts_a_boundary(scores[i], top_k[i], top_p[i]):
                continue
            ratio = torch.softmax(scores[i].double(), -1)
            if min_p[i] and ((ratio / ratio.max() - min_p[i]).abs() < 1e-6).any() and min_p[i] < 1:
                continue
            ours = scores[i] >= thresholds[i]
            theirs = _survivors(scores[i], top_k[i], top_p[i], min_p[i])
            assert torch.equal(ours, theirs), (vocabulary, spread, top_k[i], top_p[i], min_p[i], ours.sum())
            compared += 1
    assert compared > 40


def test_flat_distribution_escalates() -> None:
    vocabulary = 5000
    scores = torch.linspace(0, 1e-3, vocabulary)[torch.randperm(vocabulary)][None]
    for top_p in (0.05, 0.3, 0.77, 0.999):
        threshold = truncation_threshold(scores, *_params([0], [top_p], [0.0]))
        count = int((scores >= threshold).sum())
        assert count == pytest.approx(top_p * vocabulary, abs=8), top_p


def test_ties_survive_together() -> None:
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    for top_k in (2, 3, 4):
        threshold = truncation_threshold(scores, *_params([top_k, top_k], [1.0, 1.0], [0.0, 0.0]))
        assert (scores >= threshold[:, None]).sum(-1).tolist() == [4, 5]
    threshold = truncation_threshold(scores, *_params([0, 0], [0.6, 0.1], [0.0, 0.0]))
    assert (scores >= threshold[:, None]).sum(-1).tolist() == [4, 5]
    # 300 ties: more than the first try looks at.
    scores = torch.cat([torch.zeros(1, 300), torch.full((1, 100), -5.0)], dim=1)
    threshold = truncation_threshold(scores, *_params([5], [0.5], [0.0]))
    assert int((scores >= threshold).sum()) == 300


def test_the_best_token_always_survives() -> None:
    torch.manual_seed(fresh_seed())
    scores = torch.randn(6, 400) * torch.tensor([0.1, 1, 5, 50, 1e-4, 1e3])[:, None]
    zero = torch.zeros(6)
    tiny = truncation_threshold(scores, torch.zeros(6, dtype=torch.int64), zero + 1e-9, zero)
    assert torch.equal(tiny, scores.max(-1).values)
    both = truncation_threshold(scores, torch.ones(6, dtype=torch.int64), zero + 1e-9, zero + 1)
    assert torch.equal(both, scores.max(-1).values)


def test_thresholds_do_not_depend_on_the_batch() -> None:
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    scores = torch.randn(12, 3000) * torch.tensor([0.01, 0.5, 3.0]).repeat(4)[:, None]
    params = _params(
        [rng.choice([0, 3, 500, 2500]) for _ in range(12)],
        [rng.choice([1.0, 0.3, 0.95]) for _ in range(12)],
        [rng.choice([0.0, 0.02]) for _ in range(12)],
    )
    together = truncation_threshold(scores, *params)
    for i in range(12):
        one = slice(i, i + 1)
        assert torch.equal(truncation_threshold(scores[one], *(p[one] for p in params)), together[one])


def test_greedy_takes_the_best_whatever_else_is_set() -> None:
    torch.manual_seed(fresh_seed())
    scores = torch.randn(5, 100)
    drawn = sample(scores, torch.zeros(5), *_params([3] * 5, [0.5] * 5, [0.1] * 5), _keys(np.arange(5), np.arange(5)))
    assert torch.equal(drawn, scores.argmax(-1))


def _random_batch(rng: random.Random, n: int, vocabulary: int) -> list[Tensor]:
    scores = torch.randn(n, vocabulary) * 2
    temperature = torch.tensor([rng.choice([0.0, 0.3, 1.0, 2.0]) for _ in range(n)])
    params = _params(
        [rng.choice([0, 1, 20, vocabulary + 1]) for _ in range(n)],
        [rng.choice([1.0, 0.2, 0.9]) for _ in range(n)],
        [rng.choice([0.0, 0.1]) for _ in range(n)],
    )
    keys = _keys(np.array([rng.getrandbits(64) for _ in range(n)], dtype=np.uint64), np.arange(n))
    return [scores, temperature, *params, keys]


def test_a_draw_does_not_depend_on_the_batch_and_follows_its_key() -> None:
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    for vocabulary in (7, 320, 1003):
        batch = _random_batch(rng, 24, vocabulary)
        together = sample(*batch)
        assert torch.equal(sample(*batch), together)
        for i in range(24):
            assert torch.equal(sample(*(t[i : i + 1] for t in batch)), together[i : i + 1])
        order = torch.randperm(24)
        assert torch.equal(sample(*(t[order] for t in batch)), together[order])
    off = _params([0] * 24, [1.0] * 24, [0.0] * 24)
    drawn = [sample(batch[0], torch.ones(24), *off, _keys(np.arange(24) + i, np.arange(24))) for i in (0, 10**6)]
    assert not torch.equal(*drawn), "other keys draw the same"


def test_noise_bits_do_not_depend_on_shape() -> None:
    """The dense path evaluates the noise on [rows, vocabulary], the sparse one on a flat list."""
    rng = random.Random(fresh_seed())
    keys = _keys(np.array([rng.getrandbits(63) for _ in range(5)]), np.arange(5))
    tokens = torch.arange(2049, dtype=torch.int32)
    dense = gumbel(keys[:, None], tokens[None])
    for _ in range(50):
        count = rng.randint(1, 700)
        row = torch.tensor([rng.randrange(5) for _ in range(count)])
        token = torch.tensor([rng.randrange(2049) for _ in range(count)])
        assert torch.equal(gumbel(keys[row], token.int()), dense[row, token])


def test_truncated_rows_draw_what_a_masked_full_row_draws() -> None:
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    for vocabulary in (50, 1003):
        n = 16
        scores = torch.randn(n, vocabulary)
        keys = _keys(np.array([rng.getrandbits(63) for _ in range(n)]), np.arange(n))
        ones = torch.ones(n)
        top_k, top_p, min_p = _params([10] * n, [0.9] * n, [0.05] * n)
        threshold = truncation_threshold(scores, top_k, top_p, min_p)
        masked = scores.masked_fill(scores < threshold[:, None], -torch.inf)
        off = _params([0] * n, [1.0] * n, [0.0] * n)
        dense = sample(masked, ones, *off, keys)
        assert torch.equal(sample(scores, ones, top_k, top_p, min_p, keys), dense)
        # min_p alone and top_k alone as well: each takes its own way through the code.
        for params in (_params([4] * n, [1.0] * n, [0.0] * n), _params([0] * n, [1.0] * n, [0.3] * n)):
            threshold = truncation_threshold(scores, *params)
            masked = scores.masked_fill(scores < threshold[:, None], -torch.inf)
            assert torch.equal(sample(scores, ones, *params, keys), sample(masked, ones, *off, keys))


# -- statistics: bounds such that a right generator fails about once in a million runs --------------------------------


def _chi_square_bound(degrees: int) -> float:
    """The 1 - 1e-6 quantile by Wilson and Hilferty's cube."""
    z = 4.7534
    return degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3


def _draw_grid(
    scores: Tensor, seeds: np.ndarray, positions: np.ndarray, params: tuple[Tensor, ...], t: float
) -> Tensor:
    n = len(seeds)
    expanded = scores.expand(n, -1)
    return sample(expanded, torch.full((n,), t), *(p.expand(n) for p in params), _keys(seeds, positions))


@pytest.mark.parametrize("case", ["plain", "temperature", "truncated"])
def test_frequencies_follow_the_probabilities(case: str) -> None:
    rng = np.random.default_rng(seed := fresh_seed())
    torch.manual_seed(seed)
    scores = torch.randn(1, 24) * 1.2
    temperature = 0.7 if case == "temperature" else 1.0
    params = _params([12], [0.9], [0.01]) if case == "truncated" else _params([0], [1.0], [0.0])
    # Small consecutive seeds times consecutive positions: what users really send.
    first = int(rng.integers(0, 2**40))
    seeds, positions = np.meshgrid(np.arange(first, first + 200), np.arange(300))
    drawn = _draw_grid(scores, seeds.ravel(), positions.ravel(), params, temperature)
    scaled = scores / temperature
    kept = scaled >= truncation_threshold(scaled, *params)[:, None]
    p = torch.softmax(scaled.masked_fill(~kept, -torch.inf).double(), -1)[0].numpy()
    counts = np.bincount(drawn.numpy(), minlength=24)
    assert counts[p == 0].sum() == 0
    expected = p[p > 0] * counts.sum()
    statistic = ((counts[p > 0] - expected) ** 2 / expected).sum()
    assert statistic < _chi_square_bound(len(expected) - 1), (statistic, counts, expected)


def _noise(seeds: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    keys = _keys(seeds, positions)
    return gumbel(keys, torch.from_numpy(tokens.astype(np.int32))).numpy().astype(np.float64)


def test_noise_is_gumbel() -> None:
    rng = np.random.default_rng(fresh_seed())
    n = 200_000
    noise = _noise(rng.integers(0, 2**63, n), rng.integers(0, 4096, n), rng.integers(0, 200_000, n))
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772156649) < 5 * math.pi / math.sqrt(6 * n)
    assert abs(noise.var() - math.pi**2 / 6) < 0.05
    cdf = np.exp(-np.exp(-np.sort(noise)))
    grid = np.arange(1, n + 1) / n
    distance = max((grid - cdf).max(), (cdf - grid + 1 / n).max())
    assert distance < math.sqrt(-0.5 * math.log(0.5e-6) / n), "Kolmogorov-Smirnov"


@pytest.mark.parametrize("axis", ["seed", "position", "token"])
@pytest.mark.parametrize("stride", [1, 2, 1 << 16])
def test_neighbours_are_uncorrelated(axis: str, stride: int) -> None:
    rng = np.random.default_rng(fresh_seed())
    n = 100_000
    seeds = rng.integers(0, 2**32, n)
    positions = rng.integers(0, 8192, n)
    tokens = rng.integers(0, 100_000, n)
    a = _noise(seeds, positions, tokens)
    moved = {"seed": seeds, "position": positions, "token": tokens}
    moved[axis] = moved[axis] + stride
    b = _noise(moved["seed"], moved["position"], moved["token"])
    # Ranks: correlation of uniforms, not of the noise's long tail.
    u, v = np.exp(-np.exp(-a)) - 0.5, np.exp(-np.exp(-b)) - 0.5
    for x, y in ((u, v), (np.abs(u) - 0.25, np.abs(v) - 0.25)):
        correlation = (x * y).mean() / math.sqrt((x * x).mean() * (y * y).mean())
        assert abs(correlation) < 5.2 / math.sqrt(n), (axis, stride, correlation)


def test_pairs_of_adjacent_draws_are_independent() -> None:
    """Chi-square over the joint table of two adjacent positions, of two adjacent seeds."""
    rng = np.random.default_rng(seed := fresh_seed())
    torch.manual_seed(seed)
    scores = torch.randn(1, 6)
    p = torch.softmax(scores.double(), -1)[0].numpy()
    off = _params([0], [1.0], [0.0])
    seeds = rng.integers(0, 2**63, 40_000)
    positions = rng.integers(0, 1000, 40_000)
    first = _draw_grid(scores, seeds, positions, off, 1.0).numpy()
    for seconds in (
        _draw_grid(scores, seeds, positions + 1, off, 1.0).numpy(),
        _draw_grid(scores, seeds + 1, positions, off, 1.0).numpy(),
    ):
        table = np.bincount(first * 6 + seconds, minlength=36).reshape(6, 6)
        expected = np.outer(p, p) * len(first)
        assert ((table - expected) ** 2 / expected).sum() < _chi_square_bound(35)


def test_keys_are_distinct_and_use_all_bits_of_the_seed() -> None:
    rng = np.random.default_rng(fresh_seed())
    first = int(rng.integers(0, 2**62))
    seeds, positions = np.meshgrid(np.arange(first, first + 300, dtype=np.uint64), np.arange(300))
    keys = draw_keys(seeds.ravel(), positions.ravel())
    assert len({tuple(key) for key in keys.tolist()}) == 300 * 300
    one = draw_keys(np.array([5, 5 + (1 << 63)], dtype=np.uint64), np.array([0, 0]))
    assert (one[0] != one[1]).any()
