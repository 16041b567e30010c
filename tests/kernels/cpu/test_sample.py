"""Compiled draws against the reference, in float64 where rounding could tell them apart."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="no compiled loops on this platform")

from ladle.kernels import dispatch
from ladle.kernels.reference import operations as reference

BORDER = 1e-5
"""Of the mass at which a nucleus ends, which two ways to add it up may not agree on."""


def draw_scores(rng: np.random.Generator, rows: int, vocabulary: int) -> torch.Tensor:
    """Peaked, flat and coarse rows, the latter full of ties, some tokens ruled out."""
    spread = rng.choice([0.0, 0.3, 3.0, 30.0], size=(rows, 1))
    scores = rng.standard_normal((rows, vocabulary)) * spread
    coarse = rng.random(rows) < 0.3
    scores[coarse] = np.round(scores[coarse])
    scores[rng.random((rows, vocabulary)) < 0.05] = -np.inf
    scores[:, rng.integers(vocabulary)] = rng.standard_normal(rows)
    return torch.tensor(scores, dtype=torch.float32)


def options(rng: np.random.Generator, rows: int, vocabulary: int) -> dict[str, torch.Tensor]:
    return {
        "temperature": torch.tensor(rng.choice([0.0, 0.5, 1.0, 1.7], size=rows), dtype=torch.float32),
        "top_k": torch.tensor(rng.choice([0, 1, 5, vocabulary - 1, vocabulary, vocabulary + 9], size=rows)),
        "top_p": torch.tensor(rng.choice([0.0, 0.1, 0.6, 0.95, 1.0], size=rows), dtype=torch.float32),
        "min_p": torch.tensor(rng.choice([0.0, 0.0, 0.05, 1.0], size=rows), dtype=torch.float32),
        "keys": torch.tensor(rng.integers(-(2**31), 2**31, size=(rows, 2)), dtype=torch.int32),
    }


@pytest.mark.parametrize("vocabulary", [3, 50, 5000])
def test_tokens_are_those_of_the_reference(vocabulary: int, seed: int) -> None:
    rng = np.random.default_rng([seed, vocabulary])
    rows = 300 if vocabulary < 5000 else 60
    scores, given = draw_scores(rng, rows, vocabulary), options(rng, rows, vocabulary)
    drawn = dispatch.sample(scores, **given)
    allowed = []
    for change in (0.0, -BORDER, BORDER):
        moved = given | {"top_p": torch.where(given["top_p"] < 1, given["top_p"].double() + change, 1.0)}
        allowed.append(reference.sample(scores.double(), **moved))
    same = torch.stack([drawn == tokens for tokens in allowed]).any(dim=0)
    assert same.all(), (same.logical_not().nonzero()[:, 0].tolist(), drawn[~same].tolist())
    # Nothing but the row decides: one by one, and in another order, they draw the same.
    order = torch.tensor(rng.permutation(rows))
    assert torch.equal(
        dispatch.sample(scores[order], **{name: part[order] for name, part in given.items()}), drawn[order]
    )
    alone = [
        dispatch.sample(scores[i : i + 1], **{n: p[i : i + 1] for n, p in given.items()}) for i in range(0, rows, 7)
    ]
    assert torch.equal(torch.cat(alone), drawn[::7])


def test_logprobs_are_those_of_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = draw_scores(rng, 40, 3000)
    tokens = torch.tensor(rng.integers(3000, size=40))
    expected = reference.token_logprobs(scores.double(), tokens)
    found = dispatch.token_logprobs(scores, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-6)
    assert torch.equal(dispatch.token_logprobs(scores[3:4], tokens[3:4])[0], found[3])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_no_numbers(temperature: float, seed: int) -> None:
    """They draw some token of the vocabulary, say so by a logprob that is no number, and disturb nobody else."""
    rng = np.random.default_rng(seed)
    scores = draw_scores(rng, 6, 100)
    given = options(rng, 6, 100) | {"temperature": torch.full((6,), temperature)}
    expected = dispatch.sample(scores, **given)
    broken = scores.clone()
    broken[0, 17], broken[2], broken[4], broken[5, 3] = torch.nan, torch.nan, -torch.inf, torch.inf
    drawn = dispatch.sample(broken, **given)
    assert ((drawn >= 0) & (drawn < 100)).all() and torch.equal(drawn[[1, 3]], expected[[1, 3]])
    logprobs = dispatch.token_logprobs(broken, drawn)
    assert logprobs[[0, 2, 4, 5]].isnan().all() and not logprobs[[1, 3]].isnan().any()


def test_plain_torch_on_request(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, given = draw_scores(rng, 4, 50), options(rng, 4, 50)
    monkeypatch.setenv("LADLE_TORCH_KERNELS", "sample")
    monkeypatch.setattr("ladle.kernels.cpu.sample.sample_rows", None)
    assert torch.equal(dispatch.sample(scores, **given), reference.sample(scores, **given))
