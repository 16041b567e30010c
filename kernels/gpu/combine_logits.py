"""The operations on score rows, one by one: rules over sources, candidate values, mask, penalties.

Each is ``combine`` on tables that hold nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ladle.kernels import step_tables
from ladle.kernels.gpu.sample import truncation_threshold
from ladle.kernels.gpu.score_rows import combine
from ladle.kernels.step_tables import StepTables, own_rows, plain_tables


def combine_logits(logits: Tensor, source_rows: Tensor, weights: Tensor, *, block: int | None = None) -> Tensor:
    """See ``reference.operations.combine_logits``, whose bits this has; ``block``: tokens per tile (see ``tiling``)."""
    return combine(logits, plain_tables(source_rows, weights), block=block)


def combine_divergence(
    logits: Tensor, source_rows: Tensor, weights: Tensor, alpha: Tensor, *, block: int | None = None
) -> Tensor:
    """See ``reference.operations.combine_divergence``."""
    tables = plain_tables(source_rows, weights).changed(rule=step_tables.DIVERGENCE, scale=alpha)
    return combine(logits, replace(tables, linear=False), block=block)


def rule_out_implausible(
    scores: Tensor, base: Tensor, top_k: Tensor, top_p: Tensor, relative: Tensor, *, block: int | None = None
) -> Tensor:
    """See ``reference.operations.rule_out_implausible``."""
    floors = truncation_threshold(base, top_k, top_p, relative, block=block)
    # Every row of scores is its own only source, and row i of ``base`` is what the mask of row i asks.
    tables = own_rows(scores).changed(base=torch.arange(len(scores), device=scores.device))
    return _in_place(scores, replace(tables, masks=True), base, floors, block)


def add_candidate_values(
    scores: Tensor,
    candidates: Tensor,
    values: Tensor,
    centred: Tensor,
    restricted: Tensor,
    *,
    block: int | None = None,
) -> Tensor:
    """See ``reference.operations.add_candidate_values``."""
    # Centred here, as the engine's tables are before a step: the kernel adds values as they come.
    values = torch.where(centred[:, None], values - values.mean(dim=-1, keepdim=True), values)
    tables = own_rows(scores).changed(candidates=candidates.shape[1], restricted=restricted)
    tables = replace(tables, candidates=candidates.contiguous(), values=values.to(torch.float32).contiguous())
    return _in_place(scores, tables, scores, None, block)


def apply_penalties(
    scores: Tensor,
    counts: Tensor,
    seen: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    *,
    block: int | None = None,
) -> Tensor:
    """See ``reference.operations.apply_penalties``."""
    tables = own_rows(scores).changed(
        counted=torch.arange(len(scores), device=scores.device),
        repetition=repetition,
        presence=presence,
        frequency=frequency,
    )
    tables = replace(tables, counts=counts.to(torch.int32).contiguous(), seen=seen.contiguous())
    return _in_place(scores, tables, scores, None, block)


def _in_place(scores: Tensor, tables: StepTables, base: Tensor, floors: Tensor | None, block: int | None) -> Tensor:
    # A program reads its own tile before it writes it, so that the result may take the place of the scores.
    if scores.stride(-1) == 1:
        return combine(base, tables, scores, floors, scores, block)
    return scores.copy_(combine(base, tables, None, floors, scores, block))
