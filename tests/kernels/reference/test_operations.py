"""Combining, penalising and measuring scores, against float64 and against transformers."""

import random

import pytest
import torch
import torch.nn.functional as F
from seeds import fresh_seed
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from ladle.kernels.reference.operations import (
    add_candidate_values,
    apply_penalties,
    combine_divergence,
    combine_logits,
    guidance_shift,
    rule_out_implausible,
    token_logprobs,
)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_combination_equals_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(fresh_seed())
    logits = (torch.randn(11, 50) * 5).to(dtype)
    for width in (1, 2, 3, 5):
        source_rows = torch.randint(0, 11, (7, width))
        weights = torch.randn(7, width, dtype=torch.float64)
        weights[torch.rand(7, width) < 0.3] = 0
        weights[torch.rand(7, width) < 0.3] = 1
        combined = combine_logits(logits, source_rows, weights)
        expected = (logits.double()[source_rows] * weights[..., None]).sum(1)
        assert combined.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(combined.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_source_of_weight_zero_leaves_the_others_bit_for_bit() -> None:
    torch.manual_seed(fresh_seed())
    logits = torch.randn(6, 40) * 10
    base = logits[:3].clone()
    for poison in (torch.inf, -torch.inf, torch.nan):
        logits[3:] = torch.where(torch.rand(3, 40) < 0.5, poison, logits[3:])
        source_rows = torch.tensor([[0, 3], [1, 4], [2, 5]])
        combined = combine_logits(logits, source_rows, torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64))
        assert _same_bits(combined, base)
        # Also beside a sequence that does use its second source.
        mixed = torch.tensor([[1.0, 0.0], [0.5, 0.25], [1.0, 0.0]], dtype=torch.float64)
        combined = combine_logits(logits, source_rows, mixed)
        assert _same_bits(combined[[0, 2]], base[[0, 2]])


def test_combination_of_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(fresh_seed())
    logits = torch.randn(9, 64)
    source_rows = torch.randint(0, 9, (6, 3))
    weights = torch.randn(6, 3, dtype=torch.float64)
    weights[0], weights[1, 1:] = torch.tensor([1.0, 0.0, 0.0]), 0
    together = combine_logits(logits, source_rows, weights)
    for i in range(6):
        assert _same_bits(combine_logits(logits, source_rows[i : i + 1], weights[i : i + 1]), together[i : i + 1])


def test_repetition_penalty_equals_transformers() -> None:
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    for _ in range(20):
        penalty = rng.uniform(0.5, 2.0)
        scores = torch.randn(1, 60) * 3
        history = torch.randint(0, 60, (1, rng.randint(1, 30)))
        seen = torch.zeros(1, 60, dtype=torch.bool)
        seen[0, history[0]] = True
        zero = torch.zeros(1)
        ours = apply_penalties(
            scores.clone(), torch.zeros(1, 60, dtype=torch.int32), seen, torch.tensor([penalty]), zero, zero
        )
        torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(penalty)(history, scores.clone()))


def test_presence_and_frequency_penalties_follow_openai() -> None:
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, c counted in the output."""
    torch.manual_seed(fresh_seed())
    scores = torch.randn(5, 30, dtype=torch.float64)
    counts = torch.randint(0, 4, (5, 30), dtype=torch.int32)
    seen = (counts > 0) | (torch.rand(5, 30) < 0.2)
    presence, frequency = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    expected = torch.empty_like(scores)
    for i in range(5):
        for j in range(30):
            c = int(counts[i, j])
            expected[i, j] = scores[i, j] - c * frequency[i] - (1.0 if c > 0 else 0.0) * presence[i]
    ours = apply_penalties(scores.clone(), counts, seen, torch.ones(5, dtype=torch.float64), presence, frequency)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_penalties_keep_banned_tokens_banned() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -1.0]])
    seen = torch.ones(1, 3, dtype=torch.bool)
    ours = apply_penalties(scores, seen.int(), seen, torch.tensor([1.5]), torch.tensor([0.5]), torch.tensor([0.25]))
    torch.testing.assert_close(ours, torch.tensor([[-torch.inf, 1 / 1.5 - 0.75, -1.5 - 0.75]]))


def test_logprobs_and_shift_equal_torch_in_float64() -> None:
    torch.manual_seed(fresh_seed())
    base, final = torch.randn(8, 100).double() * 3, torch.randn(8, 100).double() * 3
    tokens = torch.randint(0, 100, (8,))
    expected = F.log_softmax(final, -1)[torch.arange(8), tokens]
    torch.testing.assert_close(token_logprobs(final, tokens), expected)
    kl = F.kl_div(F.log_softmax(final, -1), F.log_softmax(base, -1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(guidance_shift(base, final), kl)
    torch.testing.assert_close(guidance_shift(base.float(), final.float()), kl.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(guidance_shift(base, base), torch.zeros(8, dtype=torch.float64))


def test_shift_with_ruled_out_tokens() -> None:
    base = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    final = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf], [0.0, 0.0, -torch.inf]])
    shift = guidance_shift(base, final)
    assert shift[0].item() == pytest.approx(torch.log(torch.tensor(1.5)).item(), abs=1e-6)
    assert shift[1].item() == pytest.approx(0, abs=1e-6)
    assert shift[2].item() == torch.inf, "the final score rules out what the base allows"


def test_sources_that_cancel_leave_the_first_bit_for_bit() -> None:
    torch.manual_seed(fresh_seed())
    logits = torch.randn(4, 300) * 20
    logits[2] = logits[1]
    source_rows, weight = torch.tensor([[0, 1, 2]]), float(torch.rand(()) * 7)
    combined = combine_logits(logits, source_rows, torch.tensor([[1.0, weight, -weight]], dtype=torch.float64))
    assert _same_bits(combined, logits[:1])


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_divergences_equal_float64(alpha: float) -> None:
    torch.manual_seed(fresh_seed())
    logits = torch.randn(8, 60) * 4
    source_rows = torch.randint(0, 8, (5, 3))
    weights = torch.rand(5, 3, dtype=torch.float64)
    weights[0, 1] = weights[1, 0] = 0
    combined = combine_divergence(logits, source_rows, weights, torch.full((5,), alpha))
    p = torch.softmax(logits.double(), -1)[source_rows]
    expected = -torch.log((weights[..., None] * p**-alpha).sum(1)) / alpha
    torch.testing.assert_close(combined.double(), expected, rtol=1e-4, atol=1e-4)
    for i in range(5):
        alone = combine_divergence(logits, source_rows[i : i + 1], weights[i : i + 1], torch.full((1,), alpha))
        assert _same_bits(alone, combined[i : i + 1])


def test_implausible_tokens_are_ruled_out_by_each_convention() -> None:
    torch.manual_seed(fresh_seed())
    base, scores = torch.randn(4, 50) * 3, torch.randn(4, 50)
    top_k, top_p = torch.tensor([5, 0, 0, 0]), torch.tensor([1.0, 0.7, 1.0, 1.0])
    relative = torch.tensor([0.0, 0.0, 0.1, 0.0])
    kept = rule_out_implausible(scores.clone(), base, top_k, top_p, relative) > -torch.inf
    p = torch.softmax(base.double(), -1)
    order = p[1].argsort(descending=True)
    nucleus = order[: int((p[1][order].cumsum(0) < 0.7).sum()) + 1]
    assert set(kept[0].nonzero()[:, 0].tolist()) == set(base[0].topk(5).indices.tolist())
    assert set(kept[1].nonzero()[:, 0].tolist()) == set(nucleus.tolist())
    assert torch.equal(kept[2], p[2] >= 0.1 * p[2].max())
    assert kept[3].all()
    broken = scores.clone()
    broken[0] = torch.nan
    assert rule_out_implausible(broken, base, top_k, top_p, relative)[0].isnan().all()


def test_candidate_values_are_added_centred_or_alone() -> None:
    torch.manual_seed(fresh_seed())
    scores, values = torch.randn(3, 30), torch.randn(3, 4) * 2
    candidates = scores.topk(4).indices
    centred, restricted = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    summed = add_candidate_values(scores.clone(), candidates, values, centred, restricted)
    for i in range(3):
        expected = scores[i].double().clone()
        bonus = values[i].double() - (values[i].double().mean() if centred[i] else 0)
        if restricted[i]:
            expected[:] = -torch.inf
        expected[candidates[i]] = scores[i, candidates[i]].double() + bonus
        torch.testing.assert_close(summed[i].double(), expected, rtol=1e-5, atol=1e-5)
