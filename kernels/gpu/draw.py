"""Drawing one token a row: from the summaries of its tiles, or from the list of what may survive its truncation.

The fourth of the kernels that ``fused_step`` launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ladle.kernels.gpu.score_tile import BLOCK, PADDED, WARPS, merge_parts
from ladle.kernels.gpu.truncation import SUMS, noise, options_of, order, scratch_signature, value_of
from ladle.kernels.gpu.variant import POINTERS, Variant

_SUMS = tl.constexpr(SUMS)
_LOWEST = tl.constexpr(-(2**31))
_HIGHEST = tl.constexpr(2**31 - 1)
_PIVOTS = tl.constexpr(8)
_SIZES = ("vocabulary", "tiles")


@triton.jit
def _least(  # type: ignore[no-untyped-def]
    kept, start, count, longest, low, high, target, best, BY_MASS: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The least score of the row's list of which all greater ones together weigh less than ``target``.

    They weigh 1 each, or exp(score - best). It lies in (low, high], in the integers of ``order``.
    """
    tile = tl.arange(0, TILES)[:, None]
    step = tl.arange(0, _PIVOTS)
    # Multisection instead of a sort: each pass over the list weighs what lies above eight pivots at once, and narrows
    # the interval of candidate thresholds ninefold.
    while low + 1 < high:
        # The interval is kept in 64 bits: the difference of two int32 keys may not fit into 32.
        pivots = (low + (high - low) * (step + 1) // (_PIVOTS + 1)).to(tl.int32)
        above = tl.full([_PIVOTS], 0.0, tl.float32)
        least = high
        most = low
        for begin in range(0, longest, WIDTH):
            at = begin + tl.arange(0, WIDTH)[None, :]
            there = tl.reshape(at < count[:, None], [TILES * WIDTH])
            x = tl.load(kept + start + tile * BLOCK + at, mask=at < count[:, None], other=0.0)
            x = tl.reshape(x, [TILES * WIDTH])
            key = order(x)
            if BY_MASS:
                weight = tl.where(there, tl.exp(x - best), 0.0)
            else:
                weight = there.to(tl.float32)
            above += tl.sum(tl.where(key[None, :] > pivots[:, None], weight[None, :], 0.0), 1)
            least = tl.minimum(least, tl.min(tl.where(there & (key > low), key, _HIGHEST), 0).to(tl.int64))
            most = tl.maximum(most, tl.max(tl.where(there & (key <= high), key, _LOWEST), 0).to(tl.int64))
        # A pivot above which there is less than the target bounds the answer from above, any other one from below.
        few = above < target
        high = tl.minimum(high, tl.min(tl.where(few, pivots, _HIGHEST), 0).to(tl.int64))
        low = tl.maximum(low, tl.max(tl.where(few, _LOWEST, pivots), 0).to(tl.int64))
        # No further than to scores that are there: where one is left, it is the one.
        high = tl.minimum(high, most)
        low = tl.maximum(low, least - 1)
    return value_of(high.to(tl.int32))


@triton.jit
def _mass_from(kept, start, count, longest, least, best, BLOCK: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """sum exp(score - best) over the scores of the list that are no less than ``least``."""
    tile = tl.arange(0, TILES)[:, None]
    total = 0.0
    for begin in range(0, longest, WIDTH):
        at = begin + tl.arange(0, WIDTH)[None, :]
        x = tl.load(kept + start + tile * BLOCK + at, mask=at < count[:, None], other=0.0)
        mass = tl.where((at < count[:, None]) & (x >= least), tl.exp(x - best), 0.0)
        total += tl.sum(tl.sum(mass, 1), 0)
    return total


@triton.jit
def _draw_kept(  # type: ignore[no-untyped-def]
    int_params, float_params, sums, kept, kept_ids, kept_counts, sequence, vocabulary, tiles,
    BLOCK: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """(token, threshold) of a truncated row, from the list of what may survive."""
    # The threshold is the greatest of three: min-p's, which follows from the maximum; the k-th best score; and the
    # least score of the nucleus, a share of the mass that top-k left. The latter two are found by narrowing an interval
    # of integers that are ordered as the scores are. Then noise is added to what survives, WIDTH of each tile's list at
    # a time, and the best wins; ties go to the lower id.
    _temperature, top_k, top_p, min_p, _cut = options_of(int_params, float_params, sequence, vocabulary)
    lane = tl.arange(0, TILES)
    place = sums + (sequence * _SUMS + 2) * tiles
    best, mass = merge_parts(place, place + tiles, lane, lane < tiles)
    count = tl.load(kept_counts + sequence * tiles + lane, mask=lane < tiles, other=0)
    longest = tl.max(count, 0)
    start = sequence * tiles * BLOCK
    threshold = tl.where(min_p > 0.0, best + tl.log(tl.where(min_p > 0.0, min_p, 1.0)), float("-inf"))
    low = tl.full([], _LOWEST, tl.int64)
    high = order(best).to(tl.int64)
    total = tl.exp(mass)
    if top_k > 0:
        kth = _least(kept, start, count, longest, low, high, top_k.to(tl.float32), best, False, BLOCK, TILES, WIDTH)
        threshold = tl.maximum(threshold, kth)
        # The nucleus is a share of what top-k left, so its threshold cannot lie below the k-th best.
        low = order(kth).to(tl.int64) - 1
        if top_p < 1.0:
            total = _mass_from(kept, start, count, longest, kth, best, BLOCK, TILES, WIDTH)
    if top_p < 1.0:
        nucleus = _least(kept, start, count, longest, low, high, top_p * total, best, True, BLOCK, TILES, WIDTH)
        threshold = tl.maximum(threshold, nucleus)
    winner = float("-inf")
    token = vocabulary
    tile = lane[:, None]
    for begin in range(0, longest, WIDTH):
        at = begin + tl.arange(0, WIDTH)[None, :]
        there = at < count[:, None]
        x = tl.load(kept + start + tile * BLOCK + at, mask=there, other=float("-inf"))
        ids = tl.load(kept_ids + start + tile * BLOCK + at, mask=there, other=0)
        noisy = tl.where(there & (x >= threshold), x + noise(int_params, sequence, ids), float("-inf"))
        top = tl.max(tl.max(noisy, 1), 0)
        first = tl.min(tl.min(tl.where(there & (noisy == top), ids, vocabulary), 1), 0)
        token = tl.where(top > winner, first, tl.where(top == winner, tl.minimum(token, first), token))
        winner = tl.maximum(winner, top)
    # A row that holds no number has no winner: its last token stands in, as in the reference.
    return tl.minimum(token, vocabulary - 1), threshold


@triton.jit
def draw(  # type: ignore[no-untyped-def]
    int_params, float_params, vocabulary, tiles, sums, best_ids, kept, kept_ids, kept_counts, tokens, thresholds,
    BLOCK: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    _temperature, _top_k, _top_p, _min_p, cut = options_of(int_params, float_params, sequence, vocabulary)
    token = 0
    threshold = float("-inf")
    if cut:
        token, threshold = _draw_kept(
            int_params, float_params, sums, kept, kept_ids, kept_counts, sequence, vocabulary, tiles, BLOCK, TILES,
            WIDTH,
        )  # fmt: skip
    else:
        # Not truncated: the best token of each tile, noise included, was kept by ``summarise``.
        lane = tl.arange(0, TILES)
        place = sums + (sequence * _SUMS + 4) * tiles
        best = tl.load(place + lane, mask=lane < tiles, other=float("-inf"))
        ids = tl.load(best_ids + sequence * tiles + lane, mask=lane < tiles, other=vocabulary)
        token = tl.min(tl.where(best == tl.max(best, 0), ids, vocabulary), 0)
    tl.store(tokens + sequence, token.to(tl.int64))
    tl.store(thresholds + sequence, threshold)


def width(padded: int) -> int:
    """Survivors of each tile that are looked at together: about 1024 of a row."""
    return max(1, 1024 // padded)


def variants() -> list[Variant]:
    """The one configuration, for vocabularies of up to 262 k."""
    signature = scratch_signature("sums", "best_ids", "kept", "kept_ids", "kept_counts", "float_params", "thresholds")
    signature |= {
        "int_params": POINTERS[torch.int32],
        "tokens": POINTERS[torch.int64],
        "vocabulary": "i32",
        "tiles": "i32",
    }
    constants = {"BLOCK": BLOCK, "TILES": PADDED, "WIDTH": width(PADDED)}
    return [Variant("draw", draw, signature, constants, WARPS, 1, fp_fusion=False)]
