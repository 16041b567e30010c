from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig, Recipe, load_recipe
from ladle.recipes.prompt_list import load_prompts
from ladle.recipes.rewards import Reward
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.evaluate import Mixture, SampledAnswer, evaluate, front, merging_sampler, summarise
from ladle.recipes.training.lora import new_adapter
from ladle.recipes.training.pairs import Scale
from ladle.recipes.training.tune import corner_settings

UNIT = Scale(np.zeros(2), np.ones(2))


@pytest.fixture
def member(base: LoadedBase, tmp_path: Path) -> Path:
    model = new_adapter(base, AdapterConfig(2, 4, ("q_proj", "up_proj"), seed=5), "default")
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(tmp_path / "member"))
    model.unload()
    return tmp_path / "member"


def test_answers_are_kept_by_label_and_coefficients(
    base: LoadedBase, recipe: Recipe, rewards: tuple[Reward, ...], member: Path, tmp_path: Path
) -> None:
    members = load_members(base, {"member": member})
    prompts = load_prompts(recipe.pool.prompts, "train")[:2]
    path = tmp_path / "answers.jsonl"

    def run(coefficient: float) -> list[SampledAnswer]:
        setting = Mixture("mixture", (), {"member": coefficient})
        sampler = merging_sampler(base, members, recipe.evaluation, 10)
        return evaluate(base, sampler, [setting], prompts, rewards, path)["mixture"]

    plain, mixed = run(0.0), run(1.0)
    assert len(plain) == len(prompts) * recipe.evaluation.samples
    assert [answer.text for answer in plain] != [answer.text for answer in mixed]
    assert len(path.read_text().splitlines()) == 2
    # Read back, not sampled again; and the same label with other coefficients is another setting.
    assert (run(0.0), run(1.0)) == (plain, mixed)
    assert len(path.read_text().splitlines()) == 2


def test_likelihood_is_the_plain_base_s(
    base: LoadedBase,
    recipe: Recipe,
    rewards: tuple[Reward, ...],
    member: Path,
    random: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = load_members(base, {"member": member})
    prompt = load_prompts(recipe.pool.prompts, "train")[0]
    ids = base.prompt_ids(prompt.text)

    def total(tokens: list[int]) -> float:
        logprobs = torch.log_softmax(base.model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].double(), -1)
        return float(logprobs.gather(-1, torch.tensor(tokens)[:, None]).sum())

    # An answer that the base and the member find likely to different degrees: only such a one can tell them apart.
    drawn = random.integers(5, 300, size=(40, 8)).tolist()
    expected = [total(tokens) for tokens in drawn]
    with merged(base, members, {"member": 1.0}):
        apart = [abs(likely - total(tokens)) for likely, tokens in zip(expected, drawn, strict=True)]
    assert max(apart) > 1e-2
    tokens, likely = drawn[int(np.argmax(apart))], expected[int(np.argmax(apart))]
    monkeypatch.setattr("ladle.recipes.training.evaluate.sample", lambda *_, **__: [tokens])
    sampler = merging_sampler(base, members, replace(recipe.evaluation, samples=1), 8)
    setting = Mixture("mixture", (), {"member": 1.0})
    (answer,) = evaluate(base, sampler, [setting], [prompt], rewards)["mixture"]
    assert answer.logprob == pytest.approx(likely, abs=1e-3)


def _answer(
    rewards: tuple[float, ...], tokens: int = 10, logprob: float = -10.0, degenerate: bool = False
) -> SampledAnswer:
    return SampledAnswer("p", "text", tokens, degenerate, logprob, rewards)


def test_summary_by_hand() -> None:
    config = replace(load_recipe("demo").evaluation, samples=2, bootstrap=10)
    setting = Mixture("m", (0.75, 0.25), {"a": 2.0, "b": -1.0})
    texts = [_answer((1.0, 2.0), 10, -10.0), _answer((3.0, 4.0), 30, -70.0, degenerate=True)]
    (row,) = summarise([setting], {setting.label: texts}, ("positive", "concise"), UNIT, config)
    assert (row["positive"], row["concise"], row["tokens"], row["degenerate"]) == (2.0, 3.0, 20.0, 0.5)
    assert row["base_perplexity"] == pytest.approx(np.exp(80 / 40), abs=0.01)
    assert row["mu_z"] == pytest.approx(0.75 * 2 + 0.25 * 3)
    assert row["coefficients"] == "a=2 b=-1"


def test_front_by_hand() -> None:
    config = replace(load_recipe("demo").evaluation, samples=1, bootstrap=20)
    settings = [Mixture("m", (1.0, 0.0), {}), Mixture("m", (0.0, 1.0), {}), Mixture("other", (1.0, 0.0), {})]
    points = [(2.0, 1.0), (1.0, 2.0), (9.0, 9.0)]
    answers = {s.label: [_answer(p), _answer(p)] for s, p in zip(settings, points, strict=True)}
    measured = front("m", settings, answers, UNIT, config, [0.0, 0.0])
    assert measured == pytest.approx({"hypervolume": 3.0, "low": 3.0, "high": 3.0, "tau_0": 1.0, "tau_1": 1.0})


def test_corners_scale_the_coefficients() -> None:
    recipe = replace(load_recipe("demo"), objectives=("positive", "concise"))
    corners = {setting.label: setting.coefficients for setting in corner_settings(recipe, [1.0, 1.25])}
    assert list(corners) == ["base", "k=1 (1, 0)", "k=1.25 (1, 0)", "k=1 (0, 1)", "k=1.25 (0, 1)"]
    np.testing.assert_allclose(list(corners["k=1 (1, 0)"].values()), [1.75, -0.75], atol=1e-12)
    np.testing.assert_allclose(list(corners["k=1.25 (0, 1)"].values()), [-0.9375, 2.1875], atol=1e-12)
