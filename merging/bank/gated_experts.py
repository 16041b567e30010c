"""Experts of a mixture that compute with any mix of low-rank members, one row of coefficients per token.

Which experts a token goes to, transformers' own code decides; here is what the experts make of it, as all forms of
experts in transformers have it (``use_experts_implementation``): a product up, the gate, a product down, weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ladle.kernels import dispatch
from ladle.merging.bank.bank import Bank
from ladle.merging.bank.gated_group import Gate, GatedGroup
from ladle.merging.bank.grouped_experts import GroupedExperts
from ladle.merging.checkpoints.experts import is_experts, products_of

MakeGroup = Callable[[list[str], list[nn.Linear], int | None], GatedGroup]
"""A gated product of linear layers, of the modules of these paths; of which expert, where they are of all experts."""


class GatedExperts(nn.Module):
    """Stands where the experts stood: one gated product an expert and direction, as for any linear layer.

    Each expert multiplies the tokens that go to it, so the value of a token does not depend on the others.
    """

    def __init__(self, experts: Any, path: str, make: MakeGroup) -> None:
        super().__init__()
        self.shell = experts  # its gate, its activation and its norm; the weights are given back
        names = products_of(experts)
        self.up, self.down = ([make([f"{path}.{name}"], [linear], expert) for expert, linear in enumerate(linears)]
                              for name, linears in ((name, _linears(experts, name)) for name in names))  # fmt: skip

    @property
    def groups(self) -> list[GatedGroup]:
        return [*self.up, *self.down]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """``hidden_states`` [tokens, hidden], ``top_k_index`` and ``top_k_weights`` [tokens, k] -> [tokens, hidden]."""
        result = torch.zeros_like(hidden_states)
        # Token-expert pairs sorted by expert, stably: each expert gets its tokens as one batch, in the order of the
        # tokens.
        order = top_k_index.flatten().sort(stable=True)
        experts, counts = order.values.unique_consecutive(return_counts=True)
        # ``place`` numbers token-expert pairs: its token is place // k, and its share lies at the same place of the
        # flat shares.
        rows_by_expert = order.indices.split(counts.tolist())
        shares = top_k_weights.flatten()
        for expert, place in zip(experts.tolist(), rows_by_expert, strict=True):
            if expert >= len(self.up):
                continue  # no expert: what is masked out has an index beyond them
            tokens = place // top_k_index.shape[1]
            x = self.up[expert].forward(hidden_states.index_select(0, tokens), tokens)
            x = self.shell._apply_gate(x) if self.shell.has_gate else self.shell.act_fn(x)
            x = self.down[expert].forward(x, tokens)
            if self.shell.has_post_expert_norm:
                x = self.shell.post_expert_norm(x)
            # A token comes to an expert once, and to its experts in the order of their numbers.
            result.index_add_(0, tokens, (x * shares[place, None]).to(result.dtype))
        return result


def _linears(experts: Any, name: str) -> Iterator[nn.Linear]:
    """The experts as linear layers of one product, one after the other; the weight is given back after the last."""
    # The stacked parameter is dropped from the module before its parts are packed; only this generator still holds it.
    weight, bias = getattr(experts, name).data, getattr(experts, f"{name}_bias").data if experts.has_bias else None
    experts._parameters[name] = None
    if bias is not None:
        experts._parameters[f"{name}_bias"] = None
    for expert in range(weight.shape[0]):
        own = weight[expert].T if experts.is_transposed else weight[expert]
        linear = nn.Linear(own.shape[1], own.shape[0], bias is not None, device="meta")
        linear.weight = nn.Parameter(own, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias[expert], requires_grad=False)
        yield linear


def expert_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of all experts of ``model`` that gated experts can stand for, by name."""
    return {
        f"{path}.{name}": weight
        for path, module in model.named_modules()
        if is_experts(module)
        for name in products_of(module)
        if (weight := module._parameters.get(name)) is not None and weight.ndim == 3
    }


def one_by_one(model: Any) -> None:
    """Have transformers' own experts of ``model`` multiply one after the other until gated ones stand for them: its
    products of all at once take neither float64 nor rows of odd sizes on a CPU."""
    if any(is_experts(module) for module in model.modules()):
        model.set_experts_implementation("eager")


def install_experts(model: nn.Module, bank: Bank, gate: Gate, dtype: torch.dtype, make: MakeGroup) -> None:
    """Swap the experts of ``model`` for gated ones, in place.

    On a CPU all of them: in transformers' own products of many rows the value of a row depends on the others. On a GPU
    those whose weights ``bank`` changes.
    """
    for path, module in list(model.named_modules()):
        if not is_experts(module):
            continue
        own = [f"{path}.{name}" for name in products_of(module)]
        on_gpu = dispatch.on_gpu(next(module.parameters()))
        if on_gpu and not any(name in bank.modules for name in own):
            continue
        gated = GroupedExperts(module, path, bank, gate, dtype) if on_gpu else GatedExperts(module, path, make)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, gated)
