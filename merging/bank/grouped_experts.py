"""Gated experts in products over all experts at once, for a GPU: nothing is asked of the host, so graphs record it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladle.merging.bank.bank import Bank
from ladle.merging.bank.gated_group import Gate
from ladle.merging.checkpoints.experts import products_of

_EVEN = 8
"""Ranks come in multiples of so many: grouped products need rows of whole 16 bytes."""


class GroupedExperts(nn.Module):
    """Stands for ``experts``, whose weights it leaves where they are, with ``bank``'s factors beside them.

    The order of operations is that of transformers' own form ``grouped_mm``.
    """

    def __init__(self, experts: Any, path: str, bank: Bank, gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        self.shell = experts
        self.gate = gate
        self.names = products_of(experts)
        self.factors = tuple(self._stacked(bank, path, name, dtype) for name in self.names)

    def _stacked(self, bank: Bank, path: str, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, int] | None:
        """The factors of one weight of all experts, [experts, R, in] and [experts, out, R], and the pattern of R."""
        weight: Tensor = getattr(self.shell, name)
        outputs = weight.shape[2] if self.shell.is_transposed else weight.shape[1]
        where = f"{path}.{name}"
        made = [bank.stack([where], [outputs], torch.float64, expert) for expert in range(weight.shape[0])]
        present = [factors for factors in made if factors is not None]
        if not present:
            return None
        for factors in present:
            bank.require_finite(factors, dtype, [where])
        # A member's pair is of all experts of a weight, so that every expert has the same ranks.
        spare = -present[0].columns.shape[0] % _EVEN
        shrink = torch.stack([F.pad(factors.shrink, (0, 0, 0, spare)) for factors in present])
        expand = torch.stack([F.pad(factors.expand, (0, spare)) for factors in present])
        columns = F.pad(present[0].columns, (0, spare))
        return (shrink.to(weight.device, dtype), expand.to(weight.device, dtype),
                self.gate.pattern(columns.to(weight.device)))  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return sum(part.nbytes for factors in self.factors if factors is not None for part in factors[:2])

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """``hidden_states`` [tokens, hidden], ``top_k_index`` and ``top_k_weights`` [tokens, k] -> [tokens, hidden]."""
        count, k = self.shell.num_experts, top_k_index.shape[1]
        # Pairs sorted by expert; ``ends`` [experts] is where each expert's rows end, which is all that a grouped
        # product needs.
        experts, order = top_k_index.flatten().sort(stable=True)
        ends = torch.searchsorted(experts, torch.arange(count, device=experts.device), right=True).to(torch.int32)
        tokens = order // k
        x = self._product(0, hidden_states[tokens], experts, ends, tokens)
        x = self.shell._apply_gate(x) if self.shell.has_gate else self.shell.act_fn(x)
        x = self._product(1, x, experts, ends, tokens)
        if self.shell.has_post_expert_norm:
            x = self.shell.post_expert_norm(x)
        weighed = x * top_k_weights.flatten()[order, None]
        # Undo the sort, then add up each token's k shares.
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return weighed[back].view(-1, k, weighed.shape[-1]).sum(dim=1).to(hidden_states.dtype)

    def _product(self, which: int, x: Tensor, experts: Tensor, ends: Tensor, tokens: Tensor) -> Tensor:
        from transformers.integrations.moe import _grouped_linear

        name = self.names[which]
        bias = getattr(self.shell, f"{name}_bias")[experts] if self.shell.has_bias else None
        y = _grouped_linear(x, getattr(self.shell, name), ends, bias, self.shell.is_transposed)
        factors = self.factors[which]
        if factors is None or self.gate.closed:
            return y
        shrink, expand, pattern = factors
        scale = self.gate.scale(pattern)
        scale = scale if scale.shape[0] == 1 else scale[tokens]
        low = (_grouped_linear(x, shrink, ends) * scale).to(y.dtype)
        return y + _grouped_linear(low, expand, ends)
