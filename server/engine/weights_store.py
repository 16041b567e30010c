"""The models a step may run on: the base with its bank, and weight sets merged from full-weight members."""

from __future__ import annotations

from ladle.merging.weights_key import WeightsKey
from ladle.server.engine.loaded_model import LoadedModel


class WeightsStore:
    """Loaded models by the part of a WeightsKey that lives outside the bank."""

    def __init__(self, base_key: WeightsKey, base: LoadedModel) -> None:
        self.models: dict[WeightsKey, LoadedModel] = {base_key: base}

    def ready(self, key: WeightsKey) -> bool:
        return key in self.models
