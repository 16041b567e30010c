"""KL budgets on a GPU: before a step, the scores of sequences that have one are written down, drawn back, and made rows
of the logits from which the step goes on.

The budget is found by trial, in plain torch, which waits for the device once a trial.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ladle.kernels import step_tables
from ladle.kernels.gpu.score_rows import combine
from ladle.kernels.step_tables import StepTables
from ladle.kernels.trust_region import within_budget


def keep_to_budgets(logits: Tensor, tables: StepTables, block: int | None) -> tuple[Tensor, StepTables]:
    """(logits, tables) of the same step without KL budgets, ``block``: tokens per tile (see ``tiling``).

    The scores of a sequence with a budget, before masks, become a row of their own behind ``logits``, and its one
    source, of weight 1. Without budgets both are what they were.
    """
    sequences, bases, nats = tables.budgets
    if len(sequences) == 0:
        return logits, tables
    # The budget holds before masks, penalties and bias: these are switched off in the copy, and stay on in the step
    # itself.
    own = replace(tables.of(sequences).changed(base=-1, allowed=-1, counted=-1, biases=0), masks=False)
    scores = combine(logits, own, block=block)
    kept = within_budget(scores, logits.index_select(0, bases).to(scores.dtype), nats)
    source_rows, weights, int_params = tables.source_rows.clone(), tables.weights.clone(), tables.int_params.clone()
    source_rows[sequences] = torch.arange(len(logits), len(logits) + len(kept), device=source_rows.device)[:, None]
    # 1, 0, 0, ...
    weights[sequences] = (torch.arange(weights.shape[1], device=weights.device) == 0).to(weights.dtype)
    for column, value in {
        step_tables.RULE: step_tables.LINEAR, step_tables.CANDIDATES: 0, step_tables.RESTRICTED: 0,
    }.items():  # fmt: skip
        int_params[sequences, column] = value
    widened = torch.cat([logits.to(kept.dtype), kept])
    tables = replace(tables, source_rows=source_rows, weights=weights, int_params=int_params)
    return widened, replace(tables, budgets=tables.budgets.none())
