"""The amateur: its loss against the formula, what it reads where, and a checkpoint that the family loader takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AmateurConfig, load_recipe
from ladle.recipes.scoring import Encoded, answer_logprobs
from ladle.recipes.training.amateur import _read, distillation_loss, fit, lessons, new_amateur, train_amateur
from ladle.recipes.training.candidate_pool import Candidate


@pytest.fixture
def config() -> AmateurConfig:
    shipped = load_recipe("demo").amateur
    assert shipped is not None
    return replace(shipped, hidden=16, layers=1, heads=2, intermediate=16, top=8, turns=3, batch=2, epochs=30)


@pytest.fixture
def pool(base: LoadedBase, random: np.random.Generator) -> list[Candidate]:
    rows = []
    for prompt in ("Hello.", "Tell me about the sea."):
        for origin in ("plain", "brief", "plain cut", "brief short"):
            tokens = tuple(int(token) for token in random.integers(3, 60, size=int(random.integers(2, 6))))
            rows.append(Candidate(prompt, origin, tokens, "", -1.0, ()))
    return rows


def test_lessons_are_the_base_s_most_likely_tokens_at_whole_answers(base: LoadedBase, pool: list[Candidate]) -> None:
    taught = lessons(base, pool, 8)
    whole = [candidate for candidate in pool if candidate.origin in ("plain", "brief")]
    assert [lesson.answer for lesson in taught] == [candidate.tokens for candidate in whole]
    for lesson, candidate in zip(taught, whole, strict=True):
        ids = torch.tensor([[*base.prompt_ids(candidate.prompt), *candidate.tokens]])
        with torch.no_grad():
            logits = base.model(ids).logits[0, len(lesson.prompt) - 1 : -1]
        best = torch.log_softmax(logits, -1).gather(-1, lesson.ids.long())
        torch.testing.assert_close(best, lesson.logprobs.float(), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(best, torch.log_softmax(logits, -1).topk(8).values, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_divergence_with_one_outcome_for_the_rest(random: np.random.Generator) -> None:
    p, q = (random.dirichlet([0.3] * 9, size=5) + 1e-4 for _ in range(2))
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    ids = np.argsort(-p, axis=1)[:, :4]
    top_p, top_q = (np.take_along_axis(x, ids, 1) for x in (p, q))
    whole_p, whole_q = (np.c_[x, 1 - x.sum(1)] for x in (top_p, top_q))
    expected = (whole_p * np.log(whole_p / whole_q)).sum(1).mean()
    logits = torch.tensor(np.log(q) + 2.5, dtype=torch.float32)
    found = distillation_loss(logits, torch.tensor(ids), torch.tensor(np.log(top_p)))
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_it_learns_what_the_base_expects_and_is_loaded_again(
    base: LoadedBase, config: AmateurConfig, pool: list[Candidate], tmp_path: Path
) -> None:
    taught = lessons(base, pool, config.top)
    before = new_amateur(base, config)
    with torch.no_grad():
        logits, ids, logprobs = _read(before, [taught[:1], taught[1:3]])  # two turns in a row, read one after the other
        alone = answer_logprobs(before, taught[0].prompt, [taught[0].answer])[0][0]
    torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-4, atol=1e-4)
    start = float(distillation_loss(logits, ids, logprobs))
    train_amateur(base, taught, config, tmp_path / "amateur")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "amateur", dtype=torch.float32)
    with torch.no_grad():
        assert float(distillation_loss(*_read(after, [taught[:1], taught[1:3]]))) < start
    assert after.config.tie_word_embeddings and not (tmp_path / "amateur" / "tokenizer.json").exists()


def test_the_fit_is_the_mean_loss_and_its_interval_holds_it(base: LoadedBase, pool: list[Candidate]) -> None:
    held = [
        [Encoded(tuple(base.prompt_ids(prompt)), one.tokens) for one in pool if one.prompt == prompt]
        for prompt in dict.fromkeys(one.prompt for one in pool)
    ]
    found = fit("base", base.model, held, 50, 0)
    losses = []
    for items in held:
        for item in items:
            with torch.no_grad():
                _, logprobs = answer_logprobs(base.model, item.prompt, [item.answer])
            losses += (-logprobs[0]).tolist()
    assert found.tokens == len(losses) and found.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert found.low <= found.loss <= found.high
