"""Segments of a sequence that attention takes one by one, and how what they give is put together."""

from __future__ import annotations

from typing import Any

import numpy as np

from ladle.kernels.cpu.arrays import Floats, Indices, PagedTokens
from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.compiling.parts import in_parts
from ladle.kernels.cpu.elementary import exp
from ladle.kernels.cpu.intrinsics import narrow

SEGMENT = 128
"""Tokens that one thread attends to at a time. Where a segment begins follows from places in the sequence alone, so
that a row is summed in the same order whatever shares its step."""


@inner(**INNER)
def first_seen(position: int, window: int) -> int:
    """The first token that a row at ``position`` sees; ``window``: how many it sees, itself among them, 0 for all."""
    return max(0, position - window + 1) if window > 0 else 0


@inner(**INNER)
def first_segments(paged: PagedTokens, window: int) -> Indices:
    """[rows + 1] the number of segments before those that each row sees."""
    tokens = paged.positions.shape[0]
    firsts = np.empty(tokens + 1, np.int64)
    firsts[0] = 0
    for t in range(tokens):
        # Segments lie at fixed multiples of SEGMENT; a window may begin in the middle of one.
        start = first_seen(paged.positions[t], window)
        firsts[t + 1] = firsts[t] + paged.positions[t] // SEGMENT - start // SEGMENT + 1
    return firsts


@inner(**INNER)
def _joined(sums: Floats, best: Floats, weight: Floats, first: int, last: int, head: int, answer: Any) -> None:
    """What the segments ``first`` to ``last`` of one row and head amount to."""
    # The common maximum of all segments of this row and head.
    most = np.float32(-np.inf)
    for number in range(first, last):
        most = max(most, best[number, head])
    # Rescale every segment from its own maximum to the common one (the online softmax), then divide once.
    total, together = sums[first, head], np.float32(0)
    for number in range(first, last):
        factor = exp(best[number, head] - most)
        together += factor * weight[number, head]
        part = sums[number, head]
        if number == first:
            for i in range(total.shape[0]):
                total[i] *= factor
        else:
            for i in range(total.shape[0]):
                total[i] += factor * part[i]
    together = np.float32(1) / together
    for i in range(answer.shape[0]):
        answer[i] = narrow(total[i] * together, answer[i])


@inner(**INNER)
def _join_part(
    sums: Floats, best: Floats, weight: Floats, firsts: Indices, heads: int, mixed: Any, parts: int, part: int
) -> None:
    # A row's segments lie side by side in ``sums``, from firsts[t] to before firsts[t + 1].
    tokens, dim = mixed.shape[0], mixed.shape[1] // heads
    for t in range(part * tokens // parts, (part + 1) * tokens // parts):
        for head in range(heads):
            answer = mixed[t, head * dim : (head + 1) * dim]
            _joined(sums, best, weight, firsts[t], firsts[t + 1], head, answer)


_join_beside = in_parts(_join_part)


@inner(**INNER)
def join_segments(
    sums: Floats, best: Floats, weight: Floats, firsts: Indices, heads: int, mixed: Any, threads: int
) -> None:
    """The answers ``mixed`` [rows, heads * d] of what each row's segments gave, in their order.

    ``sums`` [segments, heads, d or more]: weighted values, relative to the largest score ``best`` [segments, heads],
    and the sum of the weights ``weight`` [segments, heads]; ``firsts``: see ``first_segments``.
    """
    _join_beside((sums, best, weight, firsts, heads, mixed, threads), threads)
