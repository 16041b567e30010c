import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.training.lora import new_adapter

ADAPTER = AdapterConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"), seed=5)


def test_a_fresh_adapter_is_the_base_and_the_same_every_time(base: LoadedBase) -> None:
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
