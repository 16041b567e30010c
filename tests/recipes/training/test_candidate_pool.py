from pathlib import Path

import pytest
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import Recipe
from ladle.recipes.prompt_list import load_prompts
from ladle.recipes.rewards import Reward
from ladle.recipes.training.candidate_pool import Candidate, build_pool


@pytest.fixture
def pool(base: LoadedBase, recipe: Recipe, rewards: tuple[Reward, ...], tmp_path: Path) -> list[Candidate]:
    prompts = load_prompts(recipe.pool.prompts, "train")
    return build_pool(base, prompts, rewards, recipe.pool, tmp_path / "work" / "pool.jsonl")


def test_pool_holds_every_prompt_and_style(pool: list[Candidate], recipe: Recipe, rewards: tuple[Reward, ...]) -> None:
    prompts = [prompt.text for prompt in load_prompts(recipe.pool.prompts, "train")]
    assert list(dict.fromkeys(candidate.prompt for candidate in pool)) == prompts
    assert {candidate.origin.split()[0] for candidate in pool} == {"plain", *recipe.pool.styles}
    assert sum(candidate.origin == "plain" for candidate in pool) <= len(prompts) * recipe.pool.plain_samples
    for candidate in pool:
        assert len(candidate.tokens) <= recipe.pool.max_tokens
        assert candidate.rewards == tuple(reward(candidate.prompt, candidate.text) for reward in rewards)


def test_logprobs_are_the_base_s_under_the_default_prompt(pool: list[Candidate], base: LoadedBase) -> None:
    shortened = [candidate for candidate in pool if candidate.origin.endswith(("cut", "short"))]
    assert shortened, "the pool lacks shortened answers, so half of this test would not run"
    for candidate in [*pool[:8], *shortened[:8]]:
        prompt = base.prompt_ids(candidate.prompt)
        ids = torch.tensor([prompt + list(candidate.tokens)])
        with torch.inference_mode():
            logprobs = torch.log_softmax(base.model(ids).logits[0, len(prompt) - 1 : -1].double(), -1)
        expected = float(logprobs.gather(-1, torch.tensor(candidate.tokens)[:, None]).sum())
        assert candidate.logprob == pytest.approx(expected, abs=1e-3)
    assert all(candidate.tokens[-1] == base.eos for candidate in shortened)


def test_a_broken_off_run_resumes_to_the_same_pool(
    pool: list[Candidate], base: LoadedBase, recipe: Recipe, rewards: tuple[Reward, ...], tmp_path: Path
) -> None:
    prompts = load_prompts(recipe.pool.prompts, "train")
    path = tmp_path / "work" / "pool.jsonl"
    content = path.read_bytes()
    assert content.count(b"\n") >= 2
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(content[: content.index(b"\n") + 100])  # one whole batch and the start of another
    assert build_pool(base, prompts, rewards, recipe.pool, torn) == pool
    assert torn.read_bytes() == content


def test_a_finished_pool_is_not_sampled_again_but_rewarded_again(
    pool: list[Candidate], base: LoadedBase, recipe: Recipe, rewards: tuple[Reward, ...], tmp_path: Path
) -> None:
    prompts = load_prompts(recipe.pool.prompts, "train")
    swapped = build_pool(base, prompts, rewards[::-1], recipe.pool, tmp_path / "work" / "pool.jsonl")
    assert [candidate.tokens for candidate in swapped] == [candidate.tokens for candidate in pool]
    assert [candidate.rewards for candidate in swapped] == [candidate.rewards[::-1] for candidate in pool]
