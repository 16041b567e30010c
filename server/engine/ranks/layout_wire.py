"""A step's layout on its way to the processes that compute it too: facts as JSON, tensors side by side by dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladle.server.engine.forward.attention import AttentionGroup, TokenBlocks
from ladle.server.engine.forward.layout import StepLayout

_DTYPES = {str(dtype): dtype for dtype in (torch.int64, torch.bool, torch.float32, torch.float64)}
Headers = dict[str, tuple[str, list[int]]]
"""Dtype and shape of every tensor by its name, in order."""


def pack(layout: StepLayout) -> tuple[dict[str, Any], list[Tensor]]:
    """(facts, tensors) of ``layout``: everything that a forward reads of it. A tensor a dtype, flat."""
    tensors: dict[str, Tensor | None] = {
        "ids": layout.ids, "positions": layout.positions, "slot_mapping": layout.slot_mapping,
        "coefficients": layout.coefficients, "logits_indices": layout.logits_indices, "amounts": layout.amounts,
    }  # fmt: skip
    groups = []
    for index, group in enumerate(layout.groups):
        # Keys that follow their blocks are 0, 1, 2, ...: their number says it all.
        plain = group.keys.shape[0] if group.keys.dim() == 1 else None
        groups.append([group.start, group.stop, group.left_padding, plain])
        tensors |= {f"{index}.positions": group.positions, f"{index}.block_table": group.block_table}
        tensors |= {f"{index}.visible": group.visible, f"{index}.keys": group.keys if plain is None else None}
    # Absent tensors are left out of the headers, so that the other side sees which there are.
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    headers = {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in there.items()}
    # By dtype, since a broadcast is of one dtype; both sides go through the headers in the same order.
    flat = [
        torch.cat([tensor.reshape(-1) for tensor in there.values() if tensor.dtype == dtype])
        for dtype in _dtypes(headers)
    ]
    return {"tensors": headers, "groups": groups}, flat


def unpack(facts: dict[str, Any], receive: Callable[[torch.dtype, int], Tensor], keys: Tensor) -> StepLayout:
    """What ``pack`` was given, but for where each token is.

    Args:
        receive: the next flat tensor, of that dtype and number of elements.
        keys: 0, 1, 2, ... int64, as many as a group may have.
    """
    headers: Headers = facts["tensors"]
    # Dtype by dtype a flat tensor is received and cut up again, in the order of the headers.
    there: dict[str, Tensor] = {}
    for dtype in _dtypes(headers):
        own = {name: shape for name, (kind, shape) in headers.items() if _DTYPES[kind] == dtype}
        sizes = [int(np.prod(shape)) for shape in own.values()]
        parts = receive(dtype, sum(sizes)).split(sizes)
        there |= {name: part.view(shape) for (name, shape), part in zip(own.items(), parts, strict=True)}
    groups = [
        AttentionGroup(
            start,
            stop,
            left_padding,
            there[f"{index}.positions"],
            there[f"{index}.block_table"],
            there[f"{index}.keys"] if plain is None else keys[:plain],
            there.get(f"{index}.visible"),
        )
        for index, (start, stop, left_padding, plain) in enumerate(facts["groups"])
    ]
    return StepLayout(
        there["ids"],
        there["positions"],
        there["slot_mapping"],
        groups,
        there.get("coefficients"),
        there.get("logits_indices"),
        TokenBlocks.none(),
        amounts=there.get("amounts"),
    )


def _dtypes(headers: Headers) -> list[torch.dtype]:
    return [dtype for name, dtype in _DTYPES.items() if any(kind == name for kind, _ in headers.values())]
