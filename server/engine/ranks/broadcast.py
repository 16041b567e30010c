"""What the engine's process has where several share a model: what it does here, the others do with their parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.forward.attention import PagedContext
from ladle.server.engine.forward.layout import StepLayout
from ladle.server.engine.forward.loaded_model import LoadedModel
from ladle.server.engine.kv.cache import KVCache, KVShape
from ladle.server.engine.ranks.ranks import Ranks


@dataclass
class BroadcastModel(LoadedModel):
    """The part of a model that this process has.

    Attributes:
        name: the model's.
        key: of the weights.
        ranks: the processes that share it, which every forward is told to.
    """

    name: str
    key: WeightsKey
    ranks: Ranks

    @classmethod
    def of(cls, model: LoadedModel, name: str, key: WeightsKey, ranks: Ranks) -> BroadcastModel:
        held = (model.model, model.gate, model.kv_shapes, model.nbytes, model.compiled, model.vectors)
        return cls(*held, name, key, ranks)

    def forward(self, layout: StepLayout, context: PagedContext) -> tuple[Tensor, Tensor]:
        # The others begin the same forward; their parts meet ours in the exchanges inside of its layers.
        with self.ranks.computing("forward", self.name, self.key, layout):
            return super().forward(layout, context)

    def hidden(self, layout: StepLayout, context: PagedContext) -> Tensor:
        with self.ranks.computing("hidden", self.name, self.key, layout):
            return super().hidden(layout, context)


class BroadcastCache(KVCache):
    """The KV pool of model ``name``, with the heads that this process has."""

    def __init__(
        self, shapes: list[KVShape], blocks: int, dtype: torch.dtype, device: torch.device, name: str, ranks: Ranks
    ) -> None:
        super().__init__(shapes, blocks, dtype, device)
        self._name = name
        self._ranks = ranks

    def clear(self, blocks: list[int]) -> None:
        if not blocks:
            return
        with self._ranks.together({"do": "clear", "model": self._name, "blocks": blocks}):
            super().clear(blocks)

    def copy(self, source: Tensor, target: Tensor) -> None:
        facts = {"do": "copy", "model": self._name, "count": source.shape[0]}
        with self._ranks.together(facts, source, target):
            super().copy(source, target)
