from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig, ValueConfig
from ladle.recipes.prompt_list import ListedPrompt
from ladle.recipes.scoring import answer_states
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.candidate_pool import Candidate
from ladle.recipes.training.lora import new_adapter
from ladle.recipes.training.value import (
    Rated,
    answer_values,
    by_prompt,
    held_out_topics,
    hidden_size,
    lambda_returns,
    load_head,
    new_head,
    train_value,
    value_loss,
)

ADAPTER = AdapterConfig(rank=2, alpha=4, targets=("q_proj", "v_proj"), seed=5)
VALUE = ValueConfig(
    seed=1,
    td_lambda=1.0,
    held_out=1,
    answers=4,
    prompts_per_step=2,
    epochs=60,
    learning_rate=1e-2,
    head_learning_rate=1e-2,
    warmup=0.1,
    max_gradient=10.0,
)


def _slow_return(values: np.ndarray, t: int, n: int, reward: float, td_lambda: float) -> float:
    """The lambda-return as its definition: a mix of k-step returns. Here t tokens are read, values[t - 1] is V_t; a
    k-step return bootstraps from V_{t+k}, and the full one is the final reward."""
    if t == n:
        return reward
    steps = n - t
    mixed = sum((1 - td_lambda) * td_lambda ** (k - 1) * values[t + k - 1] for k in range(1, steps + 1))
    return float(mixed + td_lambda**steps * reward)


def _random_case(random: np.random.Generator) -> tuple[np.ndarray, list[int], list[float]]:
    lengths = [int(n) for n in random.integers(1, 9, size=5)]
    return random.normal(size=(5, max(lengths))), lengths, random.normal(size=5).tolist()


@pytest.mark.parametrize("td_lambda", [0.0, 0.95, 1.0, None])
def test_lambda_returns_equal_the_mix_of_k_step_returns(random: np.random.Generator, td_lambda: float | None) -> None:
    td_lambda = float(random.uniform()) if td_lambda is None else td_lambda
    values, lengths, rewards = _random_case(random)
    found = lambda_returns(torch.tensor(values), lengths, rewards, td_lambda).numpy()
    for row, (n, reward) in enumerate(zip(lengths, rewards, strict=True)):
        expected = [_slow_return(values[row], t, n, reward, td_lambda) for t in range(1, n + 1)]
        np.testing.assert_allclose(found[row, :n], expected, rtol=1e-10, atol=1e-12)
        assert not found[row, n:].any()


@pytest.mark.parametrize("td_lambda", [1.0, 0.6])
def test_loss_and_its_gradient_equal_the_formula(random: np.random.Generator, td_lambda: float) -> None:
    values, lengths, rewards = _random_case(random)
    differences = np.zeros_like(values)
    for row, (n, reward) in enumerate(zip(lengths, rewards, strict=True)):
        for t in range(1, n + 1):
            target = reward if td_lambda == 1.0 else _slow_return(values[row], t, n, reward, td_lambda)
            differences[row, t - 1] = values[row, t - 1] - target
    tensor = torch.tensor(values, requires_grad=True)
    loss = value_loss(tensor, lengths, rewards, td_lambda)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * (differences**2).sum() / sum(lengths), rel=1e-10)
    assert tensor.grad is not None
    # Targets are constants: none of the gradient goes through them.
    np.testing.assert_allclose(tensor.grad.numpy(), differences / sum(lengths), rtol=1e-10, atol=1e-12)


def test_what_lies_beyond_an_answer_changes_nothing(random: np.random.Generator) -> None:
    values, lengths, rewards = _random_case(random)
    other = values.copy()
    for row, n in enumerate(lengths):
        other[row, n:] = random.normal(size=values.shape[1] - n) * 100
    losses = [float(value_loss(torch.tensor(v), lengths, rewards, 0.7)) for v in (values, other)]
    assert losses[0] == losses[1]


def test_answer_states_equal_one_forward_each_with_gradients(base: LoadedBase, random: np.random.Generator) -> None:
    prompt = random.integers(5, 300, size=6).tolist()
    answers = [random.integers(5, 300, size=n).tolist() for n in (3, 7, 1)]
    model = new_adapter(base, ADAPTER, "default")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.tensor(random.normal(size=hidden_size(base)), dtype=torch.float32)

    states, valid = answer_states(model, prompt, answers)
    gradients = torch.autograd.grad((states @ weights * valid).sum(), parameters)
    assert valid.sum(-1).tolist() == [3, 7, 1]
    separate = []
    for row, answer in enumerate(answers):
        # The states from which logits are made: those after the final norm.
        alone = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states[-1][0, len(prompt) :]
        torch.testing.assert_close(states[row, : len(answer)], alone, rtol=1e-4, atol=1e-4)
        separate.append((alone @ weights).sum())
    expected = torch.autograd.grad(torch.stack(separate).sum(), parameters)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    model.unload()


def test_head_starts_at_zero(base: LoadedBase) -> None:
    head = new_head(hidden_size(base))
    assert answer_values(base.model, head, [5, 6, 7], [[8, 9], [10]]).abs().sum() == 0.0


def test_pool_is_grouped_by_prompt_and_repeated_answers_count_once() -> None:
    def candidate(prompt: str, *tokens: int) -> Candidate:
        return Candidate(prompt, "plain", tokens, "text", -1.0, ())

    pool = [candidate("a", 1, 2), candidate("b", 3), candidate("a", 4), candidate("a", 1, 2)]
    assert by_prompt(pool, [0.5, 1.0, -1.0, 9.0]) == [
        Rated("a", ((1, 2), (4,)), (0.5, -1.0)),
        Rated("b", ((3,),), (1.0,)),
    ]


def test_held_out_topics_are_drawn_by_the_seed_and_leave_some() -> None:
    prompts = [ListedPrompt("train", f"t{i}", f"p{i}{j}") for i in range(8) for j in range(2)]
    drawn = {held_out_topics(prompts, replace(VALUE, held_out=3, seed=seed)) for seed in range(20)}
    assert all(len(topics) == 3 for topics in drawn)
    assert len(drawn) > 1
    assert len({held_out_topics(prompts[::-1], replace(VALUE, held_out=3)) for _ in range(2)}) == 1
    with pytest.raises(ValueError, match=r"value\.held_out: 8 is not allowed; allowed: fewer than the 8 topics"):
        held_out_topics(prompts, replace(VALUE, held_out=8))


def _rated(random: np.random.Generator) -> list[Rated]:
    """Answers whose reward depends on their first token, so that it can be told from any beginning."""
    return [
        Rated(
            text,
            tuple((first, *random.integers(20, 300, size=n).tolist()) for first, n in ((10, 3), (11, 5), (10, 2))),
            (1.0, -1.0, 1.0),
        )
        for text in ("rain", "sea", "stars")
    ]


@pytest.mark.parametrize("td_lambda", [1.0, 0.9])
def test_training_learns_repeats_and_what_is_stored_is_what_was_learned(
    base: LoadedBase, random: np.random.Generator, tmp_path: Path, td_lambda: float
) -> None:
    rated = _rated(random)
    config = replace(VALUE, td_lambda=td_lambda)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    for name in ("first", "second"):
        result = train_value(base, name, rated, ADAPTER, config, tmp_path / name, "some/base", lambda line: None)
    assert result["loss"] < 0.1  # it starts at 0.5
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())
    files = ("adapter_config.json", "adapter_model.safetensors", "value_head.safetensors")
    assert tuple(sorted(path.name for path in (tmp_path / "first").iterdir())) == files
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()

    stored = load_file(str(tmp_path / "first" / "value_head.safetensors"))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()} == {
        "weight": ((hidden_size(base),), torch.float32),
        "bias": ((1,), torch.float32),
    }
    factors = load_file(str(tmp_path / "first" / "adapter_model.safetensors"))
    assert {tensor.dtype for tensor in factors.values()} == {torch.float16}
    head = load_head(tmp_path / "first", hidden_size(base))
    with merged(base, load_members(base, {"v": tmp_path / "first"}), {"v": 1.0}), torch.inference_mode():
        for prompt in rated:
            values = answer_values(base.model, head, base.prompt_ids(prompt.prompt), prompt.answers)
            for row, (answer, reward) in enumerate(zip(prompt.answers, prompt.rewards, strict=True)):
                assert (values[row, : len(answer)].numpy() * reward > 0).all()


def test_values_start_from_one_initialisation(base: LoadedBase, random: np.random.Generator, tmp_path: Path) -> None:
    """Nothing is learned at rate 0, so what is stored is the start."""
    config = replace(VALUE, epochs=1, learning_rate=0.0, head_learning_rate=0.0)
    starts = []
    for name, sign in (("first", 1.0), ("second", -1.0)):
        rated = [replace(r, rewards=tuple(sign * x for x in r.rewards)) for r in _rated(random)]
        train_value(base, name, rated, ADAPTER, config, tmp_path / name, "some/base", lambda line: None)
        starts.append(load_file(str(tmp_path / name / "adapter_model.safetensors")))
        assert not load_file(str(tmp_path / name / "value_head.safetensors"))["weight"].any()
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])
    assert any(bool(tensor.any()) for tensor in starts[0].values())


def test_a_run_that_breaks_off_leaves_no_folder_and_the_base_as_it_was(
    base: LoadedBase, random: np.random.Generator, tmp_path: Path
) -> None:
    tokens = torch.tensor([[5, 9, 40, 7]])
    before = base.model(tokens).logits
    rated = [replace(r, rewards=(float("nan"),) * 3) for r in _rated(random)]
    with pytest.raises(FloatingPointError, match="broken: the loss is nan at step 0"):
        train_value(base, "broken", rated, ADAPTER, VALUE, tmp_path / "broken", "some/base")
    assert not (tmp_path / "broken").exists()
    assert torch.equal(base.model(tokens).logits, before)


def test_passes_go_through_all_answers_before_one_comes_again(random: np.random.Generator) -> None:
    from ladle.recipes.training.value import _part

    count, each = int(random.integers(2, 12)), int(random.integers(1, 5))
    prompt = Rated("p", tuple((i,) for i in range(count)), tuple(float(i) for i in range(count)))
    order = random.permutation(count)
    seen: list[int] = []
    for epoch in range(4):
        part = _part(prompt, order, epoch, each)
        assert [float(answer[0]) for answer in part.answers] == list(part.rewards)
        seen += [answer[0] for answer in part.answers]
    for start in range(0, len(seen) - count + 1, count):
        assert len(set(seen[start : start + count])) == count
