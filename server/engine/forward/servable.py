"""Whether a family that was read can be served: what an engine asks when it starts, asked without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladle.merging.bank.bank import Bank
from ladle.merging.bank.gated_experts import one_by_one
from ladle.merging.bank.gated_layers import require_called, shared_inputs
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import Family
from ladle.merging.family.family_model import FamilyModel
from ladle.server.engine.forward.attention import IMPLEMENTATION
from ladle.server.engine.forward.attention_probe import (
    has_position_table,
    learn_attention,
    refusal,
    require_positions,
    try_pool,
)
from ladle.server.engine.forward.layer_vectors import layer_paths
from ladle.server.engine.requests.tokenizer import load_tokenizer


def require_servable(family: Family) -> None:
    """Raise FamilyError for a family that the engine would refuse while it loads: an architecture that does not run on
    the KV pool, a base without a tokenizer that can be read."""
    for model in family.models.values():
        require_architecture(model)
    load_tokenizer(family.base_path)


def require_architecture(model: FamilyModel) -> None:
    """Raise FamilyError if a model's layers do not run on the KV pool, or do not take its members' factors or
    vectors. No weight is read."""
    blueprint, file = model.architecture.blueprint, model.base_path / "config.json"
    bank = Bank(list(model.low_rank.values()))
    look: Any = blueprint.look(IMPLEMENTATION)
    try:
        _try(look, bank, file, bool(model.vectors))
        if has_position_table(look):
            require_positions(_hollow(model), file)
    except FamilyError:
        raise
    except Exception:
        # A forward that asks a tensor for its value cannot be followed on the meta device. Weights that take no memory,
        # one number for all of a tensor, can be.
        try:
            _try(_hollow(model), bank, file, bool(model.vectors))
        except FamilyError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise refusal(file, f"a forward of two tokens fails ({type(error).__name__}: {reason})") from error


def _try(model: Any, bank: Bank, file: Path, vectors: bool) -> None:
    try_pool(model, learn_attention(model, file))
    require_called(model, bank, shared_inputs(model))
    if vectors:
        layer_paths(model, file)


def _hollow(model: FamilyModel) -> Any:
    weights, dtypes = model.architecture.blueprint.conversion.weights, model.architecture.blueprint.conversion.dtypes

    def tensor(name: str) -> Tensor:
        return torch.ones(1, dtype=dtypes[name]).expand(weights[name])

    hollow = model.architecture.blueprint.build(tensor, model.architecture.tied, torch.float32, IMPLEMENTATION)
    one_by_one(hollow)
    return hollow
