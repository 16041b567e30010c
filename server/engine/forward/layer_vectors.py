"""Steering vectors in the forward pass: what is added to the hidden states of every token after each decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ladle.kernels import dispatch
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.steering_vector import SteeringVector
from ladle.server.engine.forward.attention import AttentionProbe

_TOKENS = 2


class LayerVectors:
    """The vectors of one model, and how much of each the tokens now in the forward pass get: h_l + sum_j c_j V_j,l.

    The sum is made in float32 (float64 where hidden states are), vector after vector: what shares a token's batch
    leaves no mark on it, and a coefficient of 0 adds nothing.
    """

    def __init__(self, members: Sequence[SteeringVector], dtype: torch.dtype, device: torch.device) -> None:
        """``dtype``: of the sums."""
        self._directions = torch.stack([member.directions for member in members], dim=1).to(device, dtype)
        self._used: tuple[list[int], Tensor] | None = None
        self._amounts: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self._directions.nbytes

    @property
    def closed(self) -> bool:
        """Whether no token of the forward has any."""
        return self._amounts is None

    def open(self, amounts: Tensor | None) -> None:
        """Set ``amounts`` [tokens, vectors] for the next forward; None: nothing is added to any token."""
        self._amounts = amounts
        if amounts is None or dispatch.on_gpu(amounts):
            return
        # On a CPU vectors that no token has are left out: a family may have many of them. On a GPU the kernel does it.
        used = amounts.any(dim=0).nonzero()[:, 0]
        if self._used is None or self._used[0] != used.tolist():
            self._used = used.tolist(), self._directions.index_select(1, used)
        self._amounts = amounts.index_select(1, used)

    def after(self, layer: int, hidden_states: Tensor) -> Tensor:
        """``hidden_states`` [..., hidden] of the layer's end, with what the tokens get there; a tensor of its own."""
        assert self._amounts is not None
        directions = self._directions if self._used is None else self._used[1]
        # [tokens, hidden]: each token has its own row of amounts, whatever sequence it is of.
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        return dispatch.add_vectors(flat, self._amounts, directions[layer]).view(hidden_states.shape)

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[tokens, n] amounts and [layers, n, hidden] directions of the n vectors that any token has. On a CPU."""
        assert self._amounts is not None and self._used is not None
        return self._amounts.float().contiguous().numpy(), self._used[1].float().numpy()


def layer_paths(model: Any, config_file: Path) -> list[str]:
    """Paths of the decoder layers of ``model``, in order, as a forward of two tokens shows them. It may be on the meta
    device.

    Raises:
        FamilyError: it has no list of layers of which each gives the hidden states to the next.
    """
    text = model.config.get_text_config()
    count, hidden = text.num_hidden_layers, text.hidden_size
    # Candidates are all lists as long as the model is deep. Hooks then show which of them is the stack: its modules are
    # called once each, in order, and give hidden states.
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    seen: dict[str, list[tuple[int, tuple[int, ...]]]] = {path: [] for path in lists}

    def watch(path: str, index: int) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            seen[path].append((index, tuple(states.shape) if isinstance(states, Tensor) else ()))

        return note

    hooks = [
        layer.register_forward_hook(watch(path, index))
        for path, layers in lists.items()
        for index, layer in enumerate(layers)
    ]
    ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device=model.device)
    positions = torch.arange(_TOKENS, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=positions, use_cache=False, paged=AttentionProbe())
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [(index, (1, _TOKENS, hidden)) for index in range(count)]
    paths = [path for path, calls in seen.items() if calls == wanted]
    # A list that is nested in another one passes the same test; the outer one is the stack.
    outermost = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths if other != path)]
    if len(outermost) != 1:
        reason = (
            f"steering vectors cannot be added to its hidden states: it has no one list of {count} decoder layers that "
            f"each give [tokens, {hidden}] to the next"
        )
        raise FamilyError(config_file, reason)
    return [f"{outermost[0]}.{index}" for index in range(count)]


def add_after_layers(model: Any, paths: Sequence[str], vectors: LayerVectors) -> None:
    """Let the layers at ``paths``, whatever stands there now, give their hidden states with what ``vectors`` adds."""
    for index, path in enumerate(paths):
        model.get_submodule(path).register_forward_hook(_adds(vectors, index))


def _adds(vectors: LayerVectors, layer: int) -> Any:
    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        if vectors.closed:
            return None
        if isinstance(output, tuple):
            return (vectors.after(layer, output[0]), *output[1:])
        return vectors.after(layer, output)

    return add
