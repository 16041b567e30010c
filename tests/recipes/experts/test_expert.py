from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.domains.domains import questions
from ladle.recipes.experts.expert import batches, encode, language_loss, train_expert
from ladle.recipes.routing_config import ExpertsConfig
from ladle.recipes.scoring import Encoded, predictions
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.lora import load_adapter, new_adapter

ADAPTER = AdapterConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"), seed=5)
CONFIG = ExpertsConfig(
    seed=3, samples={"math": 40}, batch=4, learning_rate=2e-2, warmup=0.1, max_gradient=1.0
)  # fmt: skip


def _items(random: np.random.Generator, shared: int = 4) -> list[Encoded]:
    begin = random.integers(5, 300, size=shared).tolist()
    sizes = [(1, 3), (6, 1), (3, 7), (2, 2)]
    return [
        Encoded((*begin, *random.integers(5, 300, size=p).tolist()), tuple(random.integers(5, 300, size=a).tolist()))
        for p, a in sizes
    ]


@pytest.mark.parametrize("shared", [0, 4])
def test_predictions_equal_one_forward_each_with_gradients(
    base: LoadedBase, random: np.random.Generator, shared: int
) -> None:
    items = _items(random, shared)
    model = new_adapter(base, ADAPTER, "default")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = predictions(model, items)
    gradients = torch.autograd.grad(found.logprobs().sum(), parameters)
    total = torch.zeros(())
    for row, item in enumerate(items):
        own = found.rows == row
        assert tuple(found.targets[own].tolist()) == item.answer
        alone = model(torch.tensor([[*item.prompt, *item.answer]]), output_hidden_states=True)
        window = slice(len(item.prompt) - 1, -1)
        torch.testing.assert_close(found.logits[own], alone.logits[0, window], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.states[own], alone.hidden_states[-1][0, window], rtol=1e-4, atol=1e-4)
        expected = alone.logits[0, window].log_softmax(-1).gather(-1, torch.tensor([item.answer]).T)
        torch.testing.assert_close(found.logprobs()[own], expected.squeeze(-1), rtol=1e-4, atol=1e-4)
        total = total + expected.sum()
    for ours, theirs in zip(gradients, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_loss_equals_the_formula(random: np.random.Generator) -> None:
    logits, targets = random.normal(size=(7, 11)), random.integers(11, size=7)
    expected = 0.0
    for row, target in zip(logits, targets, strict=True):
        expected -= row[target] - np.log(sum(np.exp(value) for value in row))
    found = float(language_loss(torch.tensor(logits), torch.tensor(targets)))
    assert found == pytest.approx(expected / 7, rel=1e-10)


def test_batches_hold_every_item_once(random: np.random.Generator) -> None:
    items = [Encoded((1,) * int(n), (2,)) for n in random.integers(1, 30, size=57)]
    found = batches(items, 4, random)
    assert sorted(index for batch in found for index in batch) == list(range(57))
    assert max(len(batch) for batch in found) == 4


def test_an_expert_learns_its_answers_and_leaves_the_base(base: LoadedBase, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    asked = questions("math", "train", 40, 1)
    items = [encode(base, question) for question in asked[:8]]
    assert items[0].answer[-1] == base.eos
    assert base.text(list(items[0].answer)) == asked[0].task.answer
    folder = tmp_path / "expert"
    train_expert(base, "math", asked, ADAPTER, replace(CONFIG), folder, "the base")
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    members = load_members(base, {"expert": folder})
    with torch.no_grad():
        plain = float(language_loss(*_of(base, items)))
        with merged(base, members, {"expert": 1.0}):
            taught = float(language_loss(*_of(base, items)))
    assert taught < plain - 0.1


def _of(base: LoadedBase, items: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    found = predictions(base.model, items)
    return found.logits, found.targets


def test_an_adapter_of_another_shape_does_not_start_a_router(base: LoadedBase, tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    train_expert(base, "math", questions("math", "train", 4, 1), ADAPTER, CONFIG, folder, "the base")
    other = new_adapter(base, replace(ADAPTER, targets=("q_proj",)), "default")
    with pytest.raises(ValueError, match="down_proj.* is in one of the adapter and the model, not in both"):
        load_adapter(other, folder)
    other.unload()
    with pytest.raises(FileNotFoundError):
        load_adapter(new_adapter(base, ADAPTER, "default"), tmp_path / "nothing")
