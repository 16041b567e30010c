import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ladle.recipes.config import AdapterConfig, DpoConfig
from ladle.recipes.model import Base
from ladle.recipes.scoring import answer_logprobs
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.descent import schedule
from ladle.recipes.training.dpo import dpo_loss, train_member
from ladle.recipes.training.lora import new_adapter
from ladle.recipes.training.pairs import PromptPairs
from ladle.recipes.training.pool import Candidate

ADAPTER = AdapterConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"), seed=5)
DPO = DpoConfig(
    seed=1,
    beta=0.3,
    winner_nll=0.5,
    pairs=1,
    prompts_per_step=2,
    epochs=4,
    learning_rate=1e-2,
    warmup=0.1,
    max_gradient=1.0,
)


def test_loss_equals_the_formula(random: np.random.Generator) -> None:
    winner, loser, winner_base, loser_base = random.normal(-40.0, 10.0, size=(4, 6))
    length = random.integers(5, 40, size=6).astype(float)
    beta, weight = random.uniform(0.1, 1.0, size=2)
    margins = (winner - winner_base) - (loser - loser_base)
    expected = np.mean([np.logaddexp(0.0, -beta * m) for m in margins] - weight * winner / length)
    tensors = [torch.tensor(array, dtype=torch.float64) for array in (winner, loser, winner_base, loser_base, length)]
    assert float(dpo_loss(*tensors, beta=beta, winner_nll=weight)) == pytest.approx(expected, rel=1e-12)


def test_loss_at_the_base_is_ln_2() -> None:
    same = torch.tensor([-3.0, -9.0], dtype=torch.float64)
    loss = dpo_loss(same, same - 1, same, same - 1, torch.ones(2), beta=0.7, winner_nll=0.0)
    assert float(loss) == pytest.approx(math.log(2.0), rel=1e-12)


def test_schedule_rises_then_falls() -> None:
    factors = [schedule(step, 10, 0.2) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[3:] == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_a_fresh_adapter_is_the_base_and_the_same_every_time(base: Base) -> None:
    tokens = torch.tensor([[5, 9, 40, 7]])
    expected = base.model(tokens).logits
    initial = []
    for _ in range(2):
        model = new_adapter(base, ADAPTER, "default")
        torch.testing.assert_close(model(tokens).logits, expected, rtol=0.0, atol=0.0)
        initial.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
        model.unload()
    assert all(torch.equal(a, b) for a, b in zip(*initial, strict=True))
    assert any(bool(p.abs().sum() > 0) for p in initial[0])
    torch.testing.assert_close(base.model(tokens).logits, expected, rtol=0.0, atol=0.0)


def test_answer_logprobs_equal_one_forward_each_with_gradients(base: Base, random: np.random.Generator) -> None:
    prompt = random.integers(5, 300, size=6).tolist()
    answers = [random.integers(5, 300, size=n).tolist() for n in (3, 7, 1)]
    model = new_adapter(base, ADAPTER, "default").double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]

    _, shared = answer_logprobs(model, prompt, answers)
    gradients = torch.autograd.grad(shared.sum(), parameters)
    separate = []
    for answer in answers:
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        separate.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None])[:, 0])
    expected = torch.autograd.grad(torch.stack([s.sum() for s in separate]).sum(), parameters)

    for row, values in enumerate(separate):
        torch.testing.assert_close(shared[row, : len(values)].double(), values, rtol=1e-5, atol=1e-5)
        assert float(shared[row, len(values) :].abs().sum().detach()) == 0.0
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    model.unload()


def _pairs(base: Base, random: np.random.Generator) -> list[PromptPairs]:
    pairs = []
    for text in ("rain", "sea", "stars"):
        answers = [random.integers(5, 300, size=5).tolist() for _ in range(2)]
        with torch.inference_mode():
            totals = answer_logprobs(base.model, base.prompt_ids(text), answers)[1].sum(-1).tolist()
        winner, loser = (
            Candidate(text, "plain", tuple(answer), base.text(answer), total, ())
            for answer, total in zip(answers, totals, strict=True)
        )
        pairs.append(PromptPairs(text, (winner,), (loser,)))
    return pairs


def test_training_prefers_winners_repeats_and_leaves_the_base_alone(
    base: Base, random: np.random.Generator, tmp_path: Path
) -> None:
    pairs = _pairs(base, random)
    tokens = torch.tensor([[5, 9, 40, 7]])
    before = base.model(tokens).logits
    for name in ("first", "second"):
        result = train_member(base, name, pairs, ADAPTER, DPO, tmp_path / name, "some/base", report=lambda line: None)
    assert result["accuracy"] == 1.0 and result["margin"] > 1.0
    torch.testing.assert_close(base.model(tokens).logits, before, rtol=0.0, atol=0.0)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]

    members = load_members(base, {"first": tmp_path / "first"})
    with merged(base, members, {"first": 1.0}), torch.inference_mode():
        for pair in pairs:
            answers = [pair.winners[0].tokens, pair.losers[0].tokens]
            winner, loser = answer_logprobs(base.model, base.prompt_ids(pair.prompt), answers)[1].sum(-1).tolist()
            assert winner - loser > pair.winners[0].logprob - pair.losers[0].logprob
