"""Draws of the Triton kernels: the reference's own, the noise of float64, sets of survivors sorted out in float64."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not on this platform")

from kernel_device import DEVICE
from triton_interpreter import MARKS

from ladle.kernels.gpu import sample as kernels
from ladle.kernels.reference import operations as reference
from ladle.server.engine.scores.slot_tables import draw_keys

pytestmark = MARKS

BLOCK = 64
CLOSE = 1e-5
"""Where two scores after noise are closer than this, or a cumulative probability to top-p, either answer is right."""


@pytest.fixture
def rng() -> random.Random:
    seed = fresh_seed()
    torch.manual_seed(seed)
    return random.Random(seed)


@dataclass
class Options:
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    keys: Tensor

    def given(self) -> tuple[Tensor, ...]:
        return tuple(t.to(DEVICE) for t in (self.temperature, self.top_k, self.top_p, self.min_p, self.keys))

    def cuts(self) -> tuple[Tensor, ...]:
        return self.given()[1:4]


def options(
    rng: random.Random, n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Options:
    keys = draw_keys(np.array([rng.getrandbits(63) for _ in range(n)], dtype=np.uint64), np.arange(n))
    return Options(
        torch.full((n,), temperature), torch.full((n,), top_k), torch.full((n,), top_p), torch.full((n,), min_p),
        torch.from_numpy(keys),
    )  # fmt: skip


def mixed(rng: random.Random, n: int, vocabulary: int) -> Options:
    made = options(rng, n)
    made.temperature = torch.tensor([rng.choice([0.0, 0.4, 1.0, 1.7]) for _ in range(n)])
    made.top_k = torch.tensor([rng.choice([0, 1, 3, 50, vocabulary, vocabulary + 9]) for _ in range(n)])
    made.top_p = torch.tensor([rng.choice([1.0, 1.0, 1e-6, 0.3, 0.9, 0.999]) for _ in range(n)])
    made.min_p = torch.tensor([rng.choice([0.0, 0.0, 0.02, 0.5, 1.0]) for _ in range(n)])
    return made


def survivors(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[set[int], float]:
    """Those of one row by sorting in float64, and how far the nearest cumulative probability is from top-p."""
    x = scaled.double().cpu().numpy()
    ranked = np.sort(x)[::-1]
    floor, margin = -np.inf, 1.0
    if 0 < top_k < len(x):
        floor = ranked[top_k - 1]
    kept = ranked[ranked >= floor]
    if top_p < 1:
        p = np.exp(kept - kept[0])
        before = np.cumsum(p / p.sum()) - p / p.sum()
        margin = float(np.abs(before[1:] - top_p).min()) if len(kept) > 1 else 1.0
        floor = max(floor, kept[max(1, int((before < top_p).sum())) - 1])
    if min_p > 0:
        ratio = np.exp(x - x.max())
        # The best's own ratio is exactly 1, and so on the right side of any min-p.
        near = np.abs(ratio[ratio < 1] - min_p)
        margin = min(margin, float(near.min()) if len(near) else 1.0)
        return set(np.nonzero((x >= floor) & (ratio >= min_p))[0].tolist()), margin
    return set(np.nonzero(x >= floor)[0].tolist()), margin


@pytest.mark.parametrize("vocabulary", [1, BLOCK, 2 * BLOCK + 1])
def test_draws_are_those_of_the_reference(vocabulary: int, rng: random.Random) -> None:
    """And both draw the best noisy survivor, which is looked for here by sorting, with noise in float64."""
    n = 9
    scores = torch.randn(n, vocabulary, device=DEVICE) * torch.tensor([0.05, 1.0, 4.0]).repeat(3)[:, None].to(DEVICE)
    given = mixed(rng, n, vocabulary)
    drawn = kernels.sample(scores, *given.given(), block=BLOCK)
    expected = reference.sample(scores, *given.given())
    assert drawn.dtype == torch.int64
    compared = 0
    every = torch.arange(vocabulary, dtype=torch.int32)
    for i in range(n):
        temperature = float(given.temperature[i])
        if temperature == 0:
            assert int(drawn[i]) == int(scores[i].argmax())
            continue
        scaled = scores[i].cpu() / temperature
        alive, margin = survivors(scaled, int(given.top_k[i]), float(given.top_p[i]), float(given.min_p[i]))
        noisy = scaled.double() + reference.gumbel(given.keys[i], every).double()
        ranked = sorted(alive, key=lambda token: -float(noisy[token]))
        if margin < CLOSE or (len(ranked) > 1 and float(noisy[ranked[0]] - noisy[ranked[1]]) < CLOSE):
            continue
        assert int(drawn[i]) == int(expected[i]) == ranked[0], (i, given)
        compared += 1
    assert compared >= n // 4 or not (given.temperature > 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_thresholds_are_those_of_the_reference(dtype: torch.dtype, rng: random.Random) -> None:
    """In half precision there are many ties, which survive together."""
    n, vocabulary = 6, 2 * BLOCK + 40
    scaled = (torch.randn(n, vocabulary, device=DEVICE) * 3).to(dtype)
    given = mixed(rng, n, vocabulary)
    found = kernels.truncation_threshold(scaled, *given.cuts(), block=BLOCK)
    expected = reference.truncation_threshold(scaled.float(), *given.cuts())
    for i in range(n):
        _, margin = survivors(scaled[i], int(given.top_k[i]), float(given.top_p[i]), float(given.min_p[i]))
        if margin > CLOSE:
            ours, theirs = scaled[i].float() >= found[i], scaled[i].float() >= expected[i]
            assert torch.equal(ours, theirs), (i, given, int(ours.sum()), int(theirs.sum()))


@pytest.mark.parametrize("kind", ["flat", "equal", "signs", "huge", "tiny"])
def test_thresholds_of_unusual_rows(kind: str, rng: random.Random) -> None:
    vocabulary = 2 * BLOCK
    row = {
        "flat": torch.linspace(0, 1e-3, vocabulary)[torch.randperm(vocabulary)],
        "equal": torch.full((vocabulary,), -1.5),
        "signs": torch.tensor([0.0, -0.0, 1e-30, -1e-30]).repeat(BLOCK // 2),
        "huge": torch.randn(vocabulary) * 1e30,
        "tiny": torch.randn(vocabulary) * 1e-40,
    }[kind]
    cuts = [(0, 0.5, 0.0), (5, 1.0, 0.0), (100, 1.0, 0.0), (7, 0.5, 0.0), (0, 0.99, 0.5)]
    given = options(rng, len(cuts))
    given.top_k, given.top_p, given.min_p = (torch.tensor(column) for column in zip(*cuts, strict=True))
    scaled = row.to(DEVICE).expand(len(cuts), -1)
    found = kernels.truncation_threshold(scaled, *given.cuts(), block=BLOCK)
    for i, cut in enumerate(cuts):
        alive, margin = survivors(row, *cut)
        if margin > CLOSE:
            assert set((row >= found[i].cpu()).nonzero()[:, 0].tolist()) == alive, (kind, cut)
        else:
            assert abs(int((row >= found[i].cpu()).sum()) - len(alive)) <= 2


def test_candidates_of_one_token(rng: random.Random) -> None:
    """Rows of which masks have left one token, or top-k leaves one: it is drawn, whatever the noise."""
    scores = torch.full((4, 2 * BLOCK), -torch.inf, device=DEVICE)
    tokens = torch.tensor([0, BLOCK - 1, BLOCK, 2 * BLOCK - 1], device=DEVICE)
    scores[torch.arange(4), tokens] = torch.tensor([3.0, -7.0, 0.0, 1e4], device=DEVICE)
    for given in (options(rng, 4), options(rng, 4, top_k=5, top_p=0.5, min_p=0.1)):
        assert torch.equal(kernels.sample(scores, *given.given(), block=BLOCK), tokens)
    dense = torch.randn(4, 2 * BLOCK, device=DEVICE)
    one = options(rng, 4, temperature=9.0, top_k=1)
    assert torch.equal(kernels.sample(dense, *one.given(), block=BLOCK), dense.argmax(-1))


def test_rows_of_nan_and_infinity_give_some_token(rng: random.Random) -> None:
    scores = torch.randn(5, 100, device=DEVICE)
    scores[0], scores[1], scores[2, 3], scores[3, 7] = torch.nan, -torch.inf, torch.nan, torch.inf
    for given in (
        options(rng, 5, 0.0),
        options(rng, 5),
        options(rng, 5, top_k=3, top_p=0.9),
        options(rng, 5, min_p=0.1),
    ):
        drawn = kernels.sample(scores, *given.given(), block=BLOCK)
        assert ((drawn >= 0) & (drawn < 100)).all()
        # Rows beside them are what they are alone.
        alone = Options(*(getattr(given, name)[4:] for name in ("temperature", "top_k", "top_p", "min_p", "keys")))
        assert torch.equal(kernels.sample(scores[4:], *alone.given(), block=BLOCK), drawn[4:])
        assert torch.equal(reference.sample(scores[4:], *alone.given()), drawn[4:])
    logprobs = kernels.token_logprobs(scores, torch.zeros(5, dtype=torch.int64, device=DEVICE), block=BLOCK)
    assert logprobs[:4].isnan().all() and logprobs[4].isfinite()


def test_no_rows_and_rows_that_are_not_contiguous(rng: random.Random) -> None:
    assert kernels.sample(torch.empty(0, 50, device=DEVICE), *options(rng, 0).given()).shape == (0,)
    given = options(rng, 3, top_p=0.8)
    wide = torch.randn(6, 200, device=DEVICE)
    for scores in (wide[::2, 5:105], wide[:, :3].T):
        drawn = kernels.sample(scores, *given.given(), block=BLOCK)
        assert torch.equal(drawn, kernels.sample(scores.contiguous(), *given.given(), block=BLOCK))
        assert torch.equal(drawn, reference.sample(scores, *given.given()))


@pytest.mark.parametrize("vocabulary", [3, BLOCK, 2 * BLOCK + 9])
def test_logprobs_and_the_best_equal_float64(vocabulary: int, rng: random.Random) -> None:
    scores = torch.randn(4, vocabulary, device=DEVICE) * 6
    scores[1, 1:] = -torch.inf
    tokens = torch.tensor([rng.randrange(vocabulary) for _ in range(4)], device=DEVICE)
    exact = torch.log_softmax(scores.double(), -1)
    got = kernels.token_logprobs(scores, tokens, block=BLOCK)
    expected = exact.gather(1, tokens[:, None])[:, 0]
    # The sum of a row's mass rounds a few times and is near 1; scores of up to 25 round to 2e-6.
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=6e-6)
    values, ids = kernels.best_logprobs(scores, 5, block=BLOCK)
    assert ids.shape == (4, min(5, vocabulary))
    for i in range(4):
        assert len(set(ids[i].tolist())) == ids.shape[1]
        best = sorted(range(vocabulary), key=lambda token: (-float(scores[i, token]), token))
        assert ids[i].tolist() == best[: ids.shape[1]]
        torch.testing.assert_close(values[i].double(), exact[i, ids[i]], rtol=1e-6, atol=6e-6)
