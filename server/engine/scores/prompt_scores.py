"""What a plan's combined score says of the prompt's own tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from ladle.guidance.plan import Plan
from ladle.server.engine.device.transfers import read, send_one
from ladle.server.engine.requests.request import PromptToken
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.schedule.step_plan import Chunk
from ladle.server.engine.scores.combiner import Combiner, Rows

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
    if plan.views:
        return "has a source that sees another prompt than the request's"
    return None


class PromptJudge:
    """Turns the logits of prompt tokens into log-probabilities."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._combiner = Combiner(device)

    def judge(self, logits: Tensor, rows: Rows, chunks: Seq[Chunk]) -> None:
        """Add to every judged sequence of ``chunks`` what the combined score says of its next prompt tokens.

        ``logits`` [rows, vocabulary]; ``rows``: that of the last token of each chunk, before which lie those of the
        chunk's other tokens.
        """
        for sequence, own in _by_sequence(chunks).items():
            start, count, prompt = own[0].start, own[0].count, sequence.request.prompt
            targets = prompt[start + 1 : start + count + 1]
            if targets:
                firsts = [rows[chunk.lane] - count + 1 for chunk in own]
                sequence.judged[start:] = self._tokens(logits, firsts, sequence, targets)

    def _tokens(self, logits: Tensor, firsts: Seq[int], sequence: Sequence, targets: Seq[int]) -> list[PromptToken]:
        """``firsts``: row of every lane's first token; what follows token i is ``targets[i]``."""
        places: dict[Lane, int] = {}
        stand_ins = []
        for offset in range(len(targets)):
            # The combiner knows one row a lane: every position gets lanes of its own.
            lanes = [copy.copy(lane) for lane in sequence.lanes]
            places.update(zip(lanes, (first + offset for first in firsts), strict=True))
            stand_ins.append(Sequence(sequence.request, lanes))
        scores = self._combiner.combine(logits, places, stand_ins, {}, {})
        logprobs = torch.log_softmax(scores, dim=-1)
        own = logprobs.gather(1, send_one(targets, self._device, np.int64)[:, None])[:, 0]
        found, best, ids = read(own, *logprobs.topk(sequence.request.sampling.logprobs or 0, dim=-1))
        return [
            PromptToken(logprob, tuple(zip(top_ids, top, strict=True)))
            for logprob, top_ids, top in zip(found.tolist(), ids.tolist(), best.tolist(), strict=True)
        ]


def _by_sequence(chunks: Seq[Chunk]) -> dict[Sequence, list[Chunk]]:
    found: dict[Sequence, list[Chunk]] = {}
    for chunk in chunks:
        if chunk.judged:
            found.setdefault(chunk.sequence, []).append(chunk)
    return found
