import numpy as np
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.scoring import answer_logprobs
from ladle.recipes.training.lora import new_adapter

ADAPTER = AdapterConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"), seed=5)


def test_answer_logprobs_equal_one_forward_each_with_gradients(base: LoadedBase, random: np.random.Generator) -> None:
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
