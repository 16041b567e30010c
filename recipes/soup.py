"""Merging members into the base's own weights, in place, to judge a mixture with the plain model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ladle.merging.members.adapter import LowRankMember, load_peft
from ladle.recipes.base_model import LoadedBase


def load_members(base: LoadedBase, folders: Mapping[str, Path]) -> dict[str, LowRankMember]:
    """Reads PEFT LoRA folders, by name, checked against the base's linear layers.

    Raises:
        ladle.merging.exceptions.FamilyError: an adapter is broken or does not fit.
    """
    linears = {name: module for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)}
    shapes = {name: (module.out_features, module.in_features) for name, module in linears.items()}
    return {name: load_peft(folder, name, shapes) for name, folder in folders.items()}


@contextmanager
def merged(base: LoadedBase, members: Mapping[str, LowRankMember], coefficients: Mapping[str, float]) -> Iterator[None]:
    """Within the block the base's weights are W0 + sum_j c_j D_j in float32; afterwards they are W0 again, bit for bit.

    Args:
        base: its model is changed in place.
        members: low-rank members by name.
        coefficients: signed coefficients by member name; zeros cost nothing.

    Raises:
        KeyError: a coefficient for an unknown member.
    """
    modules = dict(base.model.named_modules())
    originals: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for name, coefficient in coefficients.items():
                if coefficient == 0.0:
                    continue
                for path, low_rank in members[name].modules.items():
                    weight = modules[path].get_parameter("weight")
                    if path not in originals:
                        originals[path] = weight.detach().clone()
                    weight.add_(low_rank.delta(torch.float32).to(weight.device), alpha=coefficient)
        yield
    finally:
        with torch.no_grad():
            for path, original in originals.items():
                modules[path].get_parameter("weight").copy_(original)
