"""Hidden states after every decoder layer, of texts that are read one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ladle.merging.bank.gated_experts import one_by_one
from ladle.merging.family.family_model import FamilyModel
from ladle.server.engine.forward.attention import IMPLEMENTATION
from ladle.server.engine.forward.attention_probe import learn_attention
from ladle.server.engine.forward.layer_vectors import layer_paths


@torch.inference_mode()
def states_after_layers(
    model: FamilyModel,
    texts: Sequence[tuple[Sequence[int], int]],
    reduce: Callable[[Tensor], Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """[texts, layers, hidden] float32 on the CPU, of the plain base in float32.

    Args:
        texts: (token ids, where the part begins whose states are wanted) of each.
        reduce: [tokens, hidden] of that part after one layer -> [hidden].
        progress: called with (texts read, texts in all).

    Raises:
        FamilyError: an architecture that cannot be served, or whose layers give no hidden states to each other.
    """
    architecture, file = model.architecture, model.base_path / "config.json"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    built: Any = architecture.blueprint.build(model.base.tensor, architecture.tied, torch.float32, IMPLEMENTATION)
    built = built.to(device)
    if device.type == "cpu":
        one_by_one(built)
    learn_attention(built, file)
    seen: list[Tensor] = []
    begins: list[int] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        seen.append(reduce(states[0, begins[-1] :].float()).cpu())

    layers = [built.get_submodule(path) for path in layer_paths(built, file)]
    # One forward per text without a cache; a hook on each layer keeps the reduced states of the part that counts.
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    stacked = []
    try:
        for index, (ids, start) in enumerate(texts):
            seen.clear()
            # The hooks see one text at a time; what they cut off is told to them by the last of ``begins``.
            begins.append(start)
            given = torch.tensor([list(ids)], device=device)
            positions = torch.arange(len(ids), device=device)[None]
            built(input_ids=given, position_ids=positions, use_cache=False, logits_to_keep=1)
            stacked.append(torch.stack(seen))
            progress(index + 1, len(texts))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(stacked)
