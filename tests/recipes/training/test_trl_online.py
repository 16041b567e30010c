"""Members that TRL trains by a policy gradient on a mix of standardised rewards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.rewards import Reward
from ladle.recipes.training import trl_run
from ladle.recipes.training.pairs import Scale
from ladle.recipes.training.trl_online import standardised, train_online
from ladle.recipes.training.trl_run import TrainingJob
from ladle.recipes.trl_config import OnlineConfig

ADAPTER = AdapterConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"), seed=5)
ONLINE = OnlineConfig(
    seed=3,
    beta=0.1,
    generations=2,
    prompts_per_step=2,
    epochs=1,
    learning_rate=1e-2,
    warmup=0.1,
    max_gradient=1.0,
)
SCALE = Scale(np.array([0.1, -14.0]), np.array([0.05, 8.0]))
PROMPTS = ["rain", "sea", "stars", "sun"]


def test_a_reward_is_standardised_as_trl_calls_it(rewards: tuple[Reward, ...]) -> None:
    function = standardised(rewards[1], -14.0, 8.0)
    prompts = [[{"role": "system", "content": "s"}, {"role": "user", "content": p}] for p in ("rain", "sea")]
    completions = [[{"role": "assistant", "content": text}] for text in (" four", "fifteen letters")]
    given = function(prompts, completions, trainer_state=None)
    np.testing.assert_allclose(given, [(-4 + 14) / 8, (-15 + 14) / 8])
    assert function.__name__ == "concise"


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_member_is_trained_on_its_mix(
    base: LoadedBase, rewards: tuple[Reward, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    seen: dict[str, Any] = {}
    plain = trl_run._use_our_progress

    def look(trainer: Any) -> None:
        plain(trainer)
        seen.update(weights=trainer.reward_weights.tolist(), names=trainer.reward_func_names, args=trainer.args)

    monkeypatch.setattr(trl_run, "_use_our_progress", look)
    tokens = torch.tensor([[5, 9, 40, 7]])
    before = base.model(tokens).logits
    folder = tmp_path / "member"
    weights = np.array([0.7, 0.3]) if algorithm == "grpo" else np.array([0.0, 1.0])
    job = TrainingJob("member", folder, "some/base", ADAPTER)
    said: list[str] = []
    figures = train_online(
        base, job, algorithm, PROMPTS, rewards, weights, SCALE, ONLINE, {"logging_steps": 1}, 8, said.append
    )
    if algorithm == "grpo":
        assert seen["weights"] == pytest.approx([0.7, 0.3]) and seen["names"] == ["positive", "concise"]
    else:
        assert seen["weights"] == [1.0] and seen["names"] == ["concise"], "a reward without weight is not asked"
    assert (seen["args"].num_generations, seen["args"].max_completion_length, seen["args"].beta) == (2, 8, 0.1)
    assert seen["args"].per_device_train_batch_size * seen["args"].gradient_accumulation_steps == 4
    assert np.isfinite(figures["loss"]) and said[0].startswith("member: loss") and said[0].endswith("2 steps")
    torch.testing.assert_close(base.model(tokens).logits, before, rtol=0.0, atol=0.0)
    factors = load_file(folder / "adapter_model.safetensors")
    assert any(bool(t.abs().sum() > 0) for name, t in factors.items() if "lora_B" in name), "it learnt something"


def test_a_reward_that_fails_in_the_middle_ends_the_training(
    base: LoadedBase, rewards: tuple[Reward, ...], tmp_path: Path
) -> None:
    class Fails:
        name = "positive"

        def __call__(self, prompt: str, response: str) -> float:
            raise ValueError("rewards.positive: the function failed")

    job = TrainingJob("member", tmp_path / "member", "some/base", ADAPTER)
    with pytest.raises(ValueError, match=r"rewards\.positive: the function failed"):
        train_online(base, job, "grpo", PROMPTS, (Fails(), rewards[1]), np.ones(2), SCALE, ONLINE, {}, 8)
    assert not (tmp_path / "member").exists()
    fewer = replace(ONLINE, prompts_per_step=5)
    with pytest.raises(ValueError, match=r"grpo\.prompts_per_step: 5 is not allowed; allowed: at most the 4 prompts"):
        train_online(base, job, "grpo", PROMPTS, rewards, np.ones(2), SCALE, fewer, {}, 8)
