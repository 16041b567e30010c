"""What a row may draw, tile by tile: summaries of its scores, and the few tokens that may survive truncation.

The first three of the kernels that ``fused_step`` launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ladle.kernels import step_tables
from ladle.kernels.gpu.score_tile import (
    BLOCK,
    DTYPES,
    PADDED,
    WARPS,
    WARPS_FULL,
    drawn_tile,
    final_tile,
    merge_parts,
    shared_signature,
    top_and_mass,
)
from ladle.kernels.gpu.variant import POINTERS, Variant

SUMS = 5
"""Numbers per tile: maximum and mass of the combined score; of what is drawn from, maximum, mass, best after noise."""
GROUPS = 16
"""Maxima per tile, for a bound on the k-th best."""

_INT_PARAMS = tl.constexpr(step_tables.INT_PARAMS)
_FLOAT_PARAMS = tl.constexpr(step_tables.FLOAT_PARAMS)
_TOP_K = tl.constexpr(step_tables.TOP_K)
_KEY_0 = tl.constexpr(step_tables.KEY_0)
_KEY_1 = tl.constexpr(step_tables.KEY_1)
_TEMPERATURE = tl.constexpr(step_tables.TEMPERATURE)
_TOP_P = tl.constexpr(step_tables.TOP_P)
_MIN_P = tl.constexpr(step_tables.MIN_P)
_SUMS = tl.constexpr(SUMS)


@triton.jit
def noise(int_params, sequence, columns):  # type: ignore[no-untyped-def]
    """See ``reference.operations.gumbel``."""
    key_0 = tl.load(int_params + sequence * _INT_PARAMS + _KEY_0).to(tl.uint32, bitcast=True)
    key_1 = tl.load(int_params + sequence * _INT_PARAMS + _KEY_1).to(tl.uint32, bitcast=True)
    # A counter-based generator: two rounds of MurmurHash3's finaliser over (token, key) in place of a state that
    # advances, so that a tile made a second time gets the noise that it had the first time.
    x = (columns.to(tl.uint32) * 0x9E3779B9) ^ key_0
    for turn in tl.static_range(2):
        if turn == 1:
            x = x + key_1
        x = (x ^ (x >> 16)) * 0x85EBCA6B
        x = (x ^ (x >> 13)) * 0xC2B2AE35
        x = x ^ (x >> 16)
    # 23 random bits and a half: never 0 or 1, whose double logarithm would be infinite.
    uniform = ((x >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform))


@triton.jit
def order(x):  # type: ignore[no-untyped-def]
    """An int32 for a float32 other than NaN that is ordered as it is; both zeros have one."""
    # Patterns of negative floats grow as the numbers fall: flipping all bits but the sign turns that around.
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):  # type: ignore[no-untyped-def]
    """The float32 of an int32 of ``order``."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def options_of(int_params, float_params, sequence, vocabulary):  # type: ignore[no-untyped-def]
    """(temperature, top-k, top-p, min-p, whether there is anything to cut)"""
    float_row = float_params + sequence * _FLOAT_PARAMS
    temperature = tl.load(float_row + _TEMPERATURE)
    top_p = tl.load(float_row + _TOP_P)
    min_p = tl.load(float_row + _MIN_P)
    top_k = tl.load(int_params + sequence * _INT_PARAMS + _TOP_K)
    # A top-k of the whole vocabulary cuts nothing, and a row without anything to cut skips the lists altogether.
    top_k = tl.where(top_k < vocabulary, top_k, 0)
    cut = (temperature > 0.0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))
    return temperature, top_k, top_p, min_p, cut


@triton.jit
def summarise(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
    candidates, values, most_candidates, allowed, biased, biases, most_biases, counts, seen, counts_stride, vocabulary,
    tiles, sums, best_ids, tops,
    FULL: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    # One program per sequence and tile. First the maximum and mass of the combined scores, of which logprobs are:
    # penalties, bias and temperature change what is drawn, and not what is reported.
    sequence = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    score, columns, inside = final_tile(
        first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
        candidates, values, most_candidates, allowed, sequence, tile, vocabulary, tiles, FULL, BLOCK, TILES,
    )  # fmt: skip
    top, mass = top_and_mass(score, inside)
    place = sums + sequence * _SUMS * tiles + tile
    tl.store(place, top)
    tl.store(place + tiles, mass)
    if FULL:
        score = drawn_tile(
            score, columns, inside, int_params, float_params, biased, biases, most_biases, counts, seen, counts_stride,
            sequence, tile, BLOCK,
        )  # fmt: skip
    # From here on the score is what is drawn from. A truncated row keeps its maximum, its mass and the maxima of GROUPS
    # parts of the tile, from which find_bounds takes a bound on the k-th best. Any other row is decided by the best
    # token of each tile after Gumbel noise (none for greedy rows), so that its scores are never written.
    temperature, _top_k, _top_p, _min_p, cut = options_of(int_params, float_params, sequence, vocabulary)
    if temperature > 0.0:
        score = tl.math.div_rn(score, temperature)
    if cut:
        top, mass = top_and_mass(score, inside)
        tl.store(place + 2 * tiles, top)
        tl.store(place + 3 * tiles, mass)
        clean = tl.where(inside & (score == score), score, float("-inf"))
        grouped = tl.max(tl.reshape(clean, [GROUPS, BLOCK // GROUPS]), 1)
        tl.store(tops + (sequence * tiles + tile) * GROUPS + tl.arange(0, GROUPS), grouped)
        return
    if temperature > 0.0:
        score += noise(int_params, sequence, columns)
    clean = tl.where(inside & (score == score), score, float("-inf"))
    best = tl.max(clean, 0)
    tl.store(place + 4 * tiles, best)
    tl.store(best_ids + sequence * tiles + tile, tl.min(tl.where(inside & (clean == best), columns, vocabulary), 0))


@triton.jit
def find_bounds(  # type: ignore[no-untyped-def]
    int_params, float_params, vocabulary, tiles, sums, tops, bounds, TILES: tl.constexpr, GROUPS: tl.constexpr
):
    """Below a row's bound none of its scores survives."""
    sequence = tl.program_id(0).to(tl.int64)
    _temperature, top_k, top_p, min_p, cut = options_of(int_params, float_params, sequence, vocabulary)
    if not cut:
        return
    at = tl.arange(0, TILES)
    place = sums + (sequence * _SUMS + 2) * tiles
    best, mass = merge_parts(place, place + tiles, at, at < tiles)
    # The bounds are generous: what lies above one may still be cut, by the exact threshold that draw finds in the list.
    least = tl.where(min_p > 0.0, best + tl.log(tl.where(min_p > 0.0, min_p, 1.0)), float("-inf"))
    bound = least
    if top_k > 0:
        # The k-th best is no less than the k-th best of the groups' maxima, which is found by halving an interval.
        group = tl.arange(0, TILES * GROUPS)
        top = tl.load(tops + sequence * tiles * GROUPS + group, mask=group < tiles * GROUPS, other=float("-inf"))
        # Where fewer than k groups hold a number at all, the k-th best may lie in any of them: then there is no bound.
        low = tl.min(tl.where(top == float("-inf"), float("inf"), top), 0)
        enough = tl.sum((top > float("-inf")).to(tl.int32), 0) >= top_k
        high = best
        for _turn in range(12):
            middle = 0.5 * (low + high)
            reached = tl.sum((top >= middle).to(tl.int32), 0) >= top_k
            low = tl.where(reached, middle, low)
            high = tl.where(reached, high, middle)
        kth = tl.where(enough, low, float("-inf"))
        # The nucleus is a share of all that top-k leaves, min-p or not.
        bound = tl.where(top_p < 1.0, kth, tl.maximum(kth, least))
    elif top_p < 1.0:
        # Tokens less likely than (1 - p) / vocabulary weigh less than 1 - p together. Half of it: for rounding.
        bound = tl.maximum(bound, best + mass + tl.log(0.5 * (1.0 - top_p) / vocabulary))
    tl.store(bounds + sequence, bound)


@triton.jit
def keep(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
    candidates, values, most_candidates, allowed, biased, biases, most_biases, counts, seen, counts_stride, vocabulary,
    tiles, sums, bounds, kept, kept_ids, kept_counts,
    BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    temperature, _top_k, _top_p, _min_p, cut = options_of(int_params, float_params, sequence, vocabulary)
    if not cut:
        return
    # Tiles whose best lies below the row's bound are passed over. The others are made again, and the tokens from the
    # bound on are packed at the head of the tile's list, in the order of their ids.
    bound = tl.load(bounds + sequence)
    place = sequence * tiles + tile
    if tl.load(sums + (sequence * _SUMS + 2) * tiles + tile) < bound:
        tl.store(kept_counts + place, 0)
        return
    score, columns, inside = final_tile(
        first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
        candidates, values, most_candidates, allowed, sequence, tile, vocabulary, tiles, True, BLOCK, TILES,
    )  # fmt: skip
    score = drawn_tile(
        score, columns, inside, int_params, float_params, biased, biases, most_biases, counts, seen, counts_stride,
        sequence, tile, BLOCK,
    )  # fmt: skip
    score = tl.math.div_rn(score, temperature)
    # Compaction by a running count: the i-th survivor of the tile goes to its place i.
    survives = (inside & (score >= bound)).to(tl.int32)
    at = place * BLOCK + tl.cumsum(survives, 0) - 1
    tl.store(kept + at, score, mask=survives != 0)
    tl.store(kept_ids + at, columns, mask=survives != 0)
    tl.store(kept_counts + place, tl.sum(survives, 0))


def scratch_signature(*names: str) -> dict[str, str]:
    """The types of what lies between the kernels, and of other numbers."""
    integers = ("best_ids", "kept_ids", "kept_counts", "best_keys", "best_tokens")
    return {name: POINTERS[torch.int32 if name in integers else torch.float32] for name in names}


def variants() -> list[Variant]:
    """Every dtype, for vocabularies of up to 262 k."""
    sizes = {"TILES": PADDED, "GROUPS": GROUPS}
    signature = scratch_signature("float_params", "sums", "tops", "bounds")
    signature |= {"int_params": POINTERS[torch.int32], "vocabulary": "i32", "tiles": "i32"}
    built = [Variant("truncation bounds", find_bounds, signature, sizes, WARPS, 1, fp_fusion=False)]
    for dtype in DTYPES:
        name, shared = str(dtype)[6:], shared_signature(dtype)
        signature = shared | scratch_signature("sums", "best_ids", "tops")
        for full in (False, True):
            constants, warps = {"BLOCK": BLOCK, "FULL": full, **sizes}, WARPS_FULL if full else WARPS
            title = f"truncation summaries {'full' if full else 'linear'} {name}"
            built.append(Variant(title, summarise, signature, constants, warps, 1, fp_fusion=False))
        signature = shared | scratch_signature("sums", "bounds", "kept", "kept_ids", "kept_counts")
        constants = {"BLOCK": BLOCK, "TILES": PADDED}
        built.append(Variant(f"truncation kept {name}", keep, signature, constants, WARPS_FULL, 1, fp_fusion=False))
    return built
