"""Drawing from score rows that are there already: ``fused_step`` with every row as its own one source.

No sort: see ``fused_step``. Signatures and meaning are those of the reference.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ladle.kernels.gpu.fused_step import drawn, reported
from ladle.kernels.step_tables import own_rows


def sample(
    scores: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    *,
    block: int | None = None,
) -> Tensor:
    """See ``reference.operations.sample``; ``block``: tokens per tile (see ``score_tile.tiling``)."""
    tables = own_rows(scores).changed(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, key_0=keys[:, 0], key_1=keys[:, 1]
    )
    return drawn(scores, replace(tables, truncates=True), block=block)[0]


def truncation_threshold(
    scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, *, block: int | None = None
) -> Tensor:
    """See ``reference.operations.truncation_threshold``."""
    tables = own_rows(scaled).changed(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    return drawn(scaled, replace(tables, truncates=True), block=block)[1]


def token_logprobs(scores: Tensor, tokens: Tensor, *, block: int | None = None) -> Tensor:
    """See ``reference.operations.token_logprobs``."""
    return reported(scores, own_rows(scores), tokens, block=block).logprobs


def best_logprobs(scores: Tensor, count: int, *, block: int | None = None) -> tuple[Tensor, Tensor]:
    """See ``reference.operations.best_logprobs``."""
    tables = own_rows(scores).changed(wanted=count)
    tokens = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    made = reported(scores, replace(tables, wanted=count), tokens, block=block)
    return made.other_logprobs, made.other_tokens
