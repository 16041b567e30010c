"""The scalar head of an explicit value, merged for one lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ladle.guidance.plan import Source
from ladle.merging.members.value_head import ValueHead as SavedHead


@dataclass(frozen=True)
class LaneHead:
    """V = weight . h + bias on the last hidden state h, after the final norm.

    Attributes:
        weight: [hidden] on the device.
        bias: in the unit of the value.
    """

    weight: Tensor
    bias: float

    @classmethod
    def of(
        cls, source: Source, heads: Mapping[str, SavedHead], dtype: torch.dtype, device: torch.device
    ) -> LaneHead | None:
        """The head of ``source``, merged in float64 like the weights under it (MAGE, arXiv 2510.03782; that the head
        is merged too is our reconstruction); None for a language model."""
        if not source.head:
            return None
        # The head is linear, so the merge of heads gives the merged value of one hidden state.
        weight = sum(coefficient * heads[name].weight.double() for name, coefficient in source.head)
        assert isinstance(weight, Tensor)
        bias = sum(coefficient * heads[name].bias for name, coefficient in source.head)
        return cls(weight.to(device, dtype), float(bias))

    def __call__(self, hidden: Tensor) -> Tensor:
        """``hidden`` [n, hidden] -> values [n], in the head's dtype."""
        return (hidden.to(self.weight.dtype) * self.weight).sum(dim=-1) + self.bias
