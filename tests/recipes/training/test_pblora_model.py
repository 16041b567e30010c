"""The trained PBLoRA is the one that is served: what it adds while it trains is what its folder says in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.members.pblora import is_pblora_folder, load_pblora
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import ConditionedConfig, load_recipe
from ladle.recipes.scoring import answer_logprobs
from ladle.recipes.training.candidate_pool import Candidate
from ladle.recipes.training.conditioned import train_conditioned, wish_loss, wishes
from ladle.recipes.training.pairs import PromptPairs
from ladle.recipes.training.pblora_model import PBLoraModel, at

NAMES = ("positive", "simple", "concise")


@pytest.fixture
def config(random: np.random.Generator) -> ConditionedConfig:
    shipped = load_recipe("demo").conditioned
    assert shipped is not None
    ranks = random.permutation([1, 2, 3])
    changed = {"fixed_rank": int(ranks[0]), "rank": int(ranks[1]), "prompts_per_step": 2, "epochs": 3}
    return ConditionedConfig(**{**vars(shipped), **changed})


def test_it_starts_as_the_base_and_is_saved_as_it_computes(
    base: LoadedBase, base_folder: Path, config: ConditionedConfig, random: np.random.Generator, tmp_path: Path
) -> None:
    model = PBLoraModel(base, len(NAMES), config)
    prompt, answers = base.prompt_ids("Hello."), [[5, 6, 7], [8, 9]]
    _, plain = answer_logprobs(base.model, prompt, answers)
    mu = random.dirichlet([1.0] * len(NAMES))
    with torch.no_grad(), at(model, mu).on(base):
        assert torch.equal(answer_logprobs(base.model, prompt, answers)[1], plain)
    for one in model.factors.values():
        for parameter in one.parameters():
            parameter.data = torch.tensor(random.normal(size=parameter.shape)).half().float()
    model.save(tmp_path / "arm", "a/base")
    assert is_pblora_folder(tmp_path / "arm")
    loaded = load_pblora(tmp_path / "arm", "arm", NAMES, read_architecture(base_folder).linear)
    row = torch.tensor([1.0, *mu.tolist()], dtype=torch.float64)
    for path, factors in model.factors.items():
        inputs = torch.tensor(random.normal(size=(4, factors.pblora_A.shape[1])), dtype=torch.float32)
        parts = [loaded.fixed.modules[path], *(member.modules[path] for _, member in loaded.rows)]
        delta = sum(float(c) * p.scale * (p.b.double() @ p.a.double()) for c, p in zip(row, parts, strict=True))
        found = factors(inputs, torch.tensor(mu, dtype=torch.float32))
        torch.testing.assert_close(found.double(), inputs.double() @ delta.T, rtol=1e-3, atol=1e-3)
    _, after = answer_logprobs(base.model, prompt, answers)
    assert torch.equal(after, plain)  # the hooks are gone


def test_objectives_are_drawn_as_often_as_they_are_wished(config: ConditionedConfig) -> None:
    one = Candidate("p", "plain", (1, 2), "a", -1.0, ())
    pairs = [[PromptPairs(f"p{n}", (one,), (one,)) for n in range(400)] for _ in NAMES]
    drawn = [wish for step in wishes(pairs, config) for wish in step]
    assert len(drawn) == 1200 and all(abs(sum(wish.preference) - 1) < 1e-9 for wish in drawn)
    mu = np.array([wish.preference for wish in drawn])
    hit = np.eye(3)[[wish.objective for wish in drawn]]
    assert np.abs((hit - mu).mean(0)).max() < 0.06  # 6 standard errors at most
    assert (hit * mu).sum(1).mean() > 0.5  # E sum mu_i^2 is 0.6; a draw that ignores mu gives 1/3


def test_its_loss_is_dpo_and_the_winners_likelihood(config: ConditionedConfig, random: np.random.Generator) -> None:
    winners, losers, lengths = random.normal(size=(2, 3)), random.normal(size=(2, 3)), np.array([3.0, 5.0, 2.0])
    margins = winners[0] - winners[1] - losers[0] + losers[1]
    expected = np.log1p(np.exp(-config.beta * margins)).mean() - config.winner_nll * (winners[0] / lengths).mean()
    loss, found = wish_loss(torch.tensor(winners), torch.tensor(losers), config, torch.tensor(lengths))
    assert float(loss) == pytest.approx(expected, rel=1e-9) and found.numpy() == pytest.approx(margins)


def test_it_learns_to_follow_the_preference(
    base: LoadedBase, config: ConditionedConfig, random: np.random.Generator, tmp_path: Path
) -> None:
    """Two objectives that want opposite answers: the same adapter prefers one or the other by mu."""
    one, other = ([int(token) for token in random.integers(3, 40, size=3)] for _ in range(2))
    prompts = ["a", "b"]

    def candidate(prompt: str, tokens: list[int]) -> Candidate:
        _, logprobs = answer_logprobs(base.model, base.prompt_ids(prompt), [tokens])
        return Candidate(prompt, "plain", tuple(tokens), "", float(logprobs.detach().sum()), ())

    pairs = [
        [PromptPairs(p, (candidate(p, good),), (candidate(p, bad),)) for p in prompts]
        for good, bad in ((one, other), (other, one))
    ]
    config = ConditionedConfig(**{**vars(config), "epochs": 60, "learning_rate": 0.02, "mixing_learning_rate": 0.02})
    found = train_conditioned(base, pairs, config, tmp_path / "arm", "a/base")
    assert found["accuracy"] > 0.6 and (tmp_path / "arm" / "adapter_config.json").is_file()
