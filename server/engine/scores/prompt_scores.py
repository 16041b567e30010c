"""What a plan's combined score says of the prompt's own tokens."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ladle.guidance.plan import Plan
from ladle.kernels import dispatch
from ladle.kernels import step_tables as columns
from ladle.server.engine.device.transfers import Array, read, send_one
from ladle.server.engine.requests.request import PromptToken
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.schedule.step_plan import Chunk
from ladle.server.engine.scores.host_tables import HostTables
from ladle.server.engine.scores.slot_tables import SlotTables
from ladle.server.engine.scores.tables import StepInputs, lay_out

ROW_BYTES = 64 << 20
"""Logits of prompt tokens, in float32, that a step may hold."""


def why_not(plan: Plan) -> str | None:
    """Why the tokens of a prompt cannot be judged under ``plan``; None where they can."""
    if plan.blocks is not None:
        return "values whole blocks of an answer"
    if plan.scorer is not None:
        return "values candidates one position at a time"
    if plan.routing is not None:
        return "lets experts take turns as an answer grows"
    if any(source.view for source in plan.sources):
        return "has a source that sees another prompt than the request's"
    return None


class PromptJudge:
    """Turns the logits of prompt tokens into log-probabilities."""

    def __init__(self, slot_tables: SlotTables, device: torch.device) -> None:
        self._slot_tables = slot_tables
        self._device = device

    def judge(self, logits: Tensor, logits_rows: Array, chunks: Seq[Chunk]) -> None:
        """Add to every judged sequence of ``chunks`` what the combined score says of its next prompt tokens.

        ``logits`` [rows, vocabulary]; ``logits_rows`` [rows of the lane table] int64: that of the last token of each
        chunk, before which lie those of the chunk's other tokens.
        """
        # Chunks of a judged sequence cover the same tokens on every lane, so the first one stands for all.
        for sequence, own in _by_sequence(chunks).items():
            start, count, prompt = own[0].start, own[0].count, sequence.request.prompt
            # The logits at position i score the token at i + 1: the chunk's rows are shifted by one against its tokens.
            first = max(start + 1, sequence.request.sampling.judged_from)
            targets = prompt[first : start + count + 1]
            if targets:
                said = self._tokens(logits, logits_rows - (start + count - first), sequence, targets)
                sequence.judged[first - sequence.request.sampling.judged_from :] = said

    def _tokens(self, logits: Tensor, firsts: Array, sequence: Sequence, targets: Seq[int]) -> list[PromptToken]:
        """``firsts``: the row of every lane's first token, by lane; what follows token i is ``targets[i]``."""
        # Each prompt position takes the part of a sequence of its own, so that decoding's kernels score it.
        repeated = [sequence] * len(targets)
        tables = _at_positions(self._slot_tables.tables(repeated, firsts))
        own = lay_out(tables, repeated, StepInputs(firsts), logits.dtype, self._device)
        logprobs = torch.log_softmax(dispatch.guided_scores(logits, own), dim=-1)
        said = logprobs.gather(1, send_one(targets, self._device, np.int64)[:, None])[:, 0]
        # The token's rank is one more than the number of tokens that are more likely.
        better = (logprobs > said[:, None]).sum(dim=-1)
        sampling = sequence.request.sampling
        most = max(sampling.logprobs or 0, sampling.prompt_alternatives)
        chosen, ahead, best, ids = read(said, better, *logprobs.topk(most, dim=-1))
        return [
            PromptToken(logprob, tuple(zip(top_ids, top, strict=True)), place + 1)
            for logprob, place, top_ids, top in zip(
                chosen.tolist(), ahead.tolist(), ids.tolist(), best.tolist(), strict=True
            )
        ]


def _at_positions(tables: HostTables) -> HostTables:
    """Turn ``tables`` that say the same n times into those of n positions: the i-th reads i rows further on."""
    # The tables repeat one sequence: what points at logits (sources, mask base, budget base) moves on by one row.
    further = np.arange(len(tables.source_rows))
    int_params, budgets = tables.int_params, tables.budgets
    int_params[:, columns.BASE] += np.where(int_params[:, columns.BASE] >= 0, further, 0).astype(int_params.dtype)
    return replace(
        tables,
        source_rows=np.maximum(tables.source_rows, 0) + further[:, None],
        budgets=budgets._replace(bases=budgets.bases + further[budgets.sequences]),
    )


def _by_sequence(chunks: Seq[Chunk]) -> dict[Sequence, list[Chunk]]:
    groups: dict[Sequence, list[Chunk]] = {}
    for chunk in chunks:
        if chunk.judged:
            groups.setdefault(chunk.sequence, []).append(chunk)
    return groups
