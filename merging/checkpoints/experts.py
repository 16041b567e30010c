"""The experts of a mixture: weights that hold all of a layer's experts, and the names that adapters have for parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ladle.merging.checkpoints.conversion import Conversion

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class ExpertWeight:
    """One weight of all experts of a layer.

    Attributes:
        experts: how many there are.
        outputs, inputs: sizes of one expert's weight.
        transposed: whether it is stored as [inputs, outputs] per expert, and not as [outputs, inputs].
    """

    experts: int
    outputs: int
    inputs: int
    transposed: bool


@dataclass(frozen=True)
class ExpertPart:
    """What one linear module of one expert became.

    Attributes:
        weight: name of the weight of all experts.
        expert: its index.
        part, parts: which of how many equal parts of the outputs (gate and up are two).
    """

    weight: str
    expert: int
    part: int
    parts: int


@dataclass(frozen=True)
class Experts:
    """The mixtures of a model that compute as transformers' experts do.

    Attributes:
        conversion: how transformers makes these weights of those that are stored.
        weights: by name, e.g. ``model.layers.0.mlp.experts.gate_up_proj``, in the order in which they are defined.
        routers: (experts, in) of the modules that score the experts and are no linear layers, by module path.
    """

    weights: dict[str, ExpertWeight] = field(default_factory=dict)
    routers: dict[str, tuple[int, int]] = field(default_factory=dict)
    conversion: Conversion | None = None

    def within(self, module: str) -> list[str]:
        """The weights of the module that an adapter calls ``module``, in the order in which they are defined."""
        if not self.weights:
            return []
        leaves = dict.fromkeys(name.rpartition(".")[2] for name in self.weights)
        names = (f"{module}.{leaf}" for leaf in leaves)
        renamed = (name if name in self.weights or self.conversion is None else self.conversion.rename(name)[0]
                   for name in names)  # fmt: skip
        return [name for name in renamed if name in self.weights]

    def holds(self, module: str) -> bool:
        """Whether the model has weights in the module ``module``, of whatever kind it is."""
        while module.endswith(".base_layer"):
            module = module.removesuffix(".base_layer")
        return self.conversion is not None and any(name.startswith(f"{module}.") for name in self.conversion.weights)

    def part(self, module: str) -> ExpertPart | None:
        """What the module of one expert became that checkpoints of one tensor an expert call ``module``; None where it
        is no such module, or was not simply stacked and joined."""
        if not self.weights or self.conversion is None:
            return None
        name, pattern = self.conversion.rename(f"{module}.weight")
        if pattern is None or name not in self.weights:
            return None
        transform = self.conversion.transform(pattern)
        # Only conversions that stack experts, and join such as gate and up below each other, keep a pair of factors a
        # pair of factors.
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in transform.operations]
        if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            return None
        # The number of the layer stands in both names; the one that is left over is the expert's.
        own = _NUMBER.findall(f"{module}.")
        for number in _NUMBER.findall(name):
            if number in own:
                own.remove(number)
        patterns = list(transform.source_patterns)
        if len(own) != 1 or int(own[0]) >= self.weights[name].experts or self.weights[name].transposed:
            return None
        return ExpertPart(name, int(own[0]), patterns.index(pattern), len(patterns))


def is_experts(module: nn.Module) -> bool:
    """Whether ``module`` computes as transformers' own forms of experts do (``use_experts_implementation``)."""
    known = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate", "num_experts")
    return all(hasattr(module, name) for name in known)


def products_of(experts: Any) -> tuple[str, str]:
    """Names of the two weights of a module for which ``is_experts`` holds: what goes up, and down."""
    return "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"


def read_experts(model: nn.Module, conversion: Conversion) -> Experts:
    """The mixtures of ``model``, which may be on the meta device."""
    weights: dict[str, ExpertWeight] = {}
    for path, module in model.named_modules():
        if not is_experts(module):
            continue
        own: Mapping[str, Any] = dict(module.named_parameters(recurse=False))
        for name in own:
            if name in products_of(module) and own[name].ndim == 3:
                count, first, second = own[name].shape
                turned = bool(module.is_transposed)
                outputs, inputs = (second, first) if turned else (first, second)
                weights[f"{path}.{name}"] = ExpertWeight(count, outputs, inputs, turned)
    return Experts(weights, find_routers(model), conversion)


def find_routers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(experts, in) of the modules that stand beside experts and have a row of a weight for each, by path. One that is
    a linear layer is as any other."""
    routers: dict[str, tuple[int, int]] = {}
    for path, module in model.named_modules():
        if not is_experts(module):
            continue
        parent = path.rpartition(".")[0]
        for name, child in model.get_submodule(parent).named_children():
            weight = child._parameters.get("weight")
            if isinstance(child, (nn.Linear, nn.Embedding)) or weight is None or weight.ndim != 2:
                continue
            if weight.shape[0] == module.num_experts:
                routers[f"{parent}.{name}" if parent else name] = (weight.shape[0], weight.shape[1])
    return routers
