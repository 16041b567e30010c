"""A tile of one sequence's scores from the same tile of each of its sources, each read once: rules, candidate values,
mask, penalties, logit bias. What ``combine_logits``, ``sample`` and ``fused_step`` have in common.

Products and sums are never fused, so that linear sums have the bits that plain torch gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels import step_tables
from ladle.kernels.gpu.variant import POINTERS, Variant
from ladle.kernels.step_tables import StepTables

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 2048
WARPS, WARPS_FULL = 8, 4
"""Warps of a program that only adds sources up, and of one that may do anything to a tile: 8 would spill its
registers."""
PADDED = 128
"""A power of two that holds the tiles of vocabularies of up to 262 k; for greater ones it is doubled."""

_LINEAR = tl.constexpr(step_tables.LINEAR)
_ROUTED = tl.constexpr(step_tables.ROUTED)
_INT_PARAMS = tl.constexpr(step_tables.INT_PARAMS)
_FLOAT_PARAMS = tl.constexpr(step_tables.FLOAT_PARAMS)
_RULE = tl.constexpr(step_tables.RULE)
_BASE = tl.constexpr(step_tables.BASE)
_CANDIDATES = tl.constexpr(step_tables.CANDIDATES)
_RESTRICTED = tl.constexpr(step_tables.RESTRICTED)
_COUNTED = tl.constexpr(step_tables.COUNTED)
_BIASES = tl.constexpr(step_tables.BIASES)
_ALLOWED = tl.constexpr(step_tables.ALLOWED)
_SCALE = tl.constexpr(step_tables.SCALE)
_REPETITION = tl.constexpr(step_tables.REPETITION)
_PRESENCE = tl.constexpr(step_tables.PRESENCE)
_FREQUENCY = tl.constexpr(step_tables.FREQUENCY)
_NEAR = tl.constexpr(16)


@triton.jit
def _source(logits, stride, source_rows, at, weight, columns, inside, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of logits[source_rows[at]] as float32; 0, and not read, where ``weight`` is 0."""
    row = tl.load(source_rows + at)
    # Broadcast first, then compare: Triton's interpreter mishandles a broadcast of the comparison's result.
    there = inside & (tl.full([BLOCK], weight, tl.float32) != 0.0)
    # Upcast at once: half precision is only how the numbers lie in memory.
    return tl.load(logits + row * stride + columns, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _linear(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, sequence, columns, inside, BLOCK: tl.constexpr
):
    """w_0 l_0 + (sum_{k>0} w_k l_k); sources of weight 0 are not read."""
    # The first source by itself, the others summed up apart: where a guide and its reference agree, their weights
    # cancel, and what is left is the first source bit for bit.
    start = sequence * sources
    weight = tl.load(weights + start)
    score = _source(first, first_stride, source_rows, start, weight, columns, inside, BLOCK) * weight
    guidance = tl.full([BLOCK], 0.0, tl.float32)
    guided = 0
    for source in range(1, sources):
        weight = tl.load(weights + start + source)
        guidance += _source(logits, stride, source_rows, start + source, weight, columns, inside, BLOCK) * weight
        guided += (weight != 0.0).to(tl.int32)
    # Not added where there is none, so that even the sign of a zero stays.
    return tl.where(guided > 0, score + guidance, score)


@triton.jit
def merge_parts(tops, masses, at, there):  # type: ignore[no-untyped-def]
    """(max, log sum exp(x - max)) of a row from those of its tiles; NaN where the row holds NaN or +inf."""
    # Log-sum-exp over the tiles: each mass is rescaled from its tile's maximum to the row's.
    top = tl.load(tops + at, mask=there, other=float("-inf"))
    mass = tl.load(masses + at, mask=there, other=0.0)
    best = tl.max(top, 0)
    return best, tl.log(tl.sum(mass * tl.exp(top - best), 0))


@triton.jit
def top_and_mass(x, inside):  # type: ignore[no-untyped-def]
    """(max, sum exp(x - max)) of a tile; the max does not see NaN, the sum does."""
    # The maximum leaves NaN out, so that it is a number to shift by; the mass keeps NaN, so that a broken row is seen.
    top = tl.max(tl.where(inside & (x == x), x, float("-inf")), 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.sum(tl.where(inside, tl.exp(x - shift), 0.0), 0)


@triton.jit
def _logarithmic(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, parts, scale, rule, sequence, columns, inside,
    tiles, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The rules that need log-probabilities: DIVERGENCE over all sources, ROUTED over all but the first."""
    # Both rules are a logsumexp over sources of slope * lp_k + ln w_k, with lp_k = x - logsumexp(x) from the maxima and
    # masses that _measure found. It is taken online: top is the running maximum, total the mass relative to it. ROUTED
    # adds its first source, the router, outside of the sum.
    start = sequence * sources
    routed = rule == _ROUTED
    slope = tl.where(routed, 1.0, -scale)
    score = tl.full([BLOCK], 0.0, tl.float32)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    shift = score
    total = score
    at = tl.arange(0, TILES)
    for source in range(0, sources):
        weight = tl.load(weights + start + source)
        if weight != 0.0:
            if source == 0:
                x = _source(first, first_stride, source_rows, start, weight, columns, inside, BLOCK)
            else:
                x = _source(logits, stride, source_rows, start + source, weight, columns, inside, BLOCK)
            part = parts + (start + source) * 2 * tiles
            best, mass = merge_parts(part, part + tiles, at, at < tiles)
            logprob = (x - best) - mass
            if routed & (source == 0):
                score = weight * logprob
            else:
                term = slope * logprob + tl.log(weight)
                new = tl.maximum(top, term)
                shift = tl.where((new == float("inf")) | (new == float("-inf")), 0.0, new)
                total = total * tl.exp(top - shift) + tl.exp(term - shift)
                top = new
    mixed = shift + tl.log(total)
    spoken = tl.where(scale != 0.0, scale * mixed, 0.0)
    return tl.where(routed, spoken + score, mixed / tl.where(routed, 1.0, -scale))


@triton.jit
def _sparse(ids, values, count, columns, start, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """(values at their tokens, whether a token has one) of a tile from ``count`` pairs."""
    # The ids are read sixteen at once; only where one of them lies in this tile are they compared one by one.
    total = tl.full([BLOCK], 0.0, tl.float32)
    hit = tl.full([BLOCK], 0, tl.int32)
    for begin in range(0, count, _NEAR):
        at = begin + tl.arange(0, _NEAR)
        token = tl.load(ids + at, mask=at < count, other=-1)
        near = tl.sum(((token >= start) & (token < start + BLOCK)).to(tl.int32), 0)
        if near > 0:
            for index in range(begin, tl.minimum(begin + _NEAR, count)):
                same = columns == tl.load(ids + index)
                total = tl.where(same, tl.load(values + index), total)
                hit = tl.where(same, 1, hit)
    return total, hit


@triton.jit
def final_tile(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
    candidates, values, most, allowed, sequence, tile, vocabulary, tiles, FULL: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """A tile of the combined scores: what logprobs are of. -inf outside the vocabulary.

    Returns (scores, columns, inside).
    """
    columns = tile * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    sequence = sequence.to(tl.int64)
    if FULL:
        int_row = int_params + sequence * _INT_PARAMS
        rule = tl.load(int_row + _RULE)
        if rule == _LINEAR:
            score = _linear(
                first, first_stride, logits, stride, source_rows, weights, sources, sequence, columns, inside, BLOCK
            )
        else:
            scale = tl.load(float_params + sequence * _FLOAT_PARAMS + _SCALE)
            score = _logarithmic(
                first, first_stride, logits, stride, source_rows, weights, sources, parts, scale, rule, sequence,
                columns, inside, tiles, BLOCK, TILES,
            )  # fmt: skip
        # Values of candidates; with RESTRICTED everything else is ruled out.
        count = tl.load(int_row + _CANDIDATES)
        restricted = tl.load(int_row + _RESTRICTED)
        if (count > 0) | (restricted != 0):
            start = sequence * most
            added, hit = _sparse(candidates + start, values + start, count, columns, tile * BLOCK, BLOCK)
            score = tl.where(hit != 0, score + added, tl.where(restricted != 0, float("-inf"), score))
        # The plausibility mask: the base's own logits against the floor that was found for this sequence.
        base = tl.load(int_row + _BASE)
        if base >= 0:
            # Read again although it may be one of the sources: these are its raw logits, before any weight.
            plausible = tl.load(logits + base.to(tl.int64) * stride + columns, mask=inside, other=0.0).to(tl.float32)
            # NaN stays
            ruled_out = (plausible < tl.load(floors + sequence)) & (score == score)
            score = tl.where(ruled_out, float("-inf"), score)
        # What a grammar allows, one byte per token.
        limits = tl.load(int_row + _ALLOWED)
        if limits >= 0:
            place = limits.to(tl.int64) * vocabulary + columns
            score = tl.where(tl.load(allowed + place, mask=inside, other=0) != 0, score, float("-inf"))
    else:
        score = _linear(
            first, first_stride, logits, stride, source_rows, weights, sources, sequence, columns, inside, BLOCK
        )
    return tl.where(inside, score, float("-inf")), columns, inside


@triton.jit
def drawn_tile(  # type: ignore[no-untyped-def]
    score, columns, inside, int_params, float_params, biased, biases, most, counts, seen, counts_stride, sequence, tile,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What tokens are drawn from, before temperature: ``score`` with penalties and logit bias."""
    sequence = sequence.to(tl.int64)
    int_row = int_params + sequence * _INT_PARAMS
    # Repetition divides positive scores and multiplies negative ones; presence and frequency are subtracted after it.
    counted = tl.load(int_row + _COUNTED)
    if counted >= 0:
        place = counted.to(tl.int64) * counts_stride + columns
        count = tl.load(counts + place, mask=inside, other=0).to(tl.float32)
        there = tl.load(seen + place, mask=inside, other=0) != 0
        float_row = float_params + sequence * _FLOAT_PARAMS
        repetition = tl.load(float_row + _REPETITION)
        penalised = tl.where(score > 0.0, tl.math.div_rn(score, repetition), score * repetition)
        score = tl.where(there, penalised, score)
        # ``seen`` covers prompt and output, ``count`` the output alone: only the repetition penalty looks at the
        # prompt.
        once = tl.where(count > 0.0, tl.load(float_row + _PRESENCE), 0.0)
        score = score - (once + tl.load(float_row + _FREQUENCY) * count)
    length = tl.load(int_row + _BIASES)
    if length > 0:
        start = sequence * most
        added, hit = _sparse(biased + start, biases + start, length, columns, tile * BLOCK, BLOCK)
        score = tl.where(hit != 0, score + added, score)
    return tl.where(inside, score, float("-inf"))


@triton.jit
def _measure(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, vocabulary, tiles,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(max, sum exp(x - max)) of one tile of one source of a sequence whose rule needs log-probabilities."""
    # Grid: (sequence and source, tile). Sources of linear rules and of weight 0 need no normaliser.
    pair = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    rule = tl.load(int_params + (pair // sources) * _INT_PARAMS + _RULE)
    weight = tl.load(weights + pair)
    if (rule == _LINEAR) | (weight == 0.0):
        return
    columns = tile * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    if pair % sources == 0:
        x = _source(first, first_stride, source_rows, pair, weight, columns, inside, BLOCK)
    else:
        x = _source(logits, stride, source_rows, pair, weight, columns, inside, BLOCK)
    top, mass = top_and_mass(x, inside)
    tl.store(parts + pair * 2 * tiles + tile, top)
    tl.store(parts + pair * 2 * tiles + tiles + tile, mass)


@dataclass(frozen=True)
class Tiling:
    """How rows of scores are cut.

    Attributes:
        block: tokens per tile.
        tiles: of a row.
        padded: the power of two that holds their number.
    """

    block: int
    tiles: int
    padded: int


def tiling(vocabulary: int, block: int | None = None) -> Tiling:
    """The tiles of a vocabulary. They do not depend on the batch, and so neither do sums over them.

    2048 tokens per tile are 16 bytes per thread and load in half precision, and 16 programs per row at 32 k: enough for
    every multiprocessor from a few rows on.
    """
    block = BLOCK if block is None else block
    tiles = triton.cdiv(vocabulary, block)
    return Tiling(block, tiles, max(PADDED, triton.next_power_of_2(tiles)))


def rows_apart(logits: Tensor) -> Tensor:
    """``logits`` as it is where the tokens of a row lie side by side, else a copy in which they do."""
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()


def sources_of(
    logits: Tensor, tables: StepTables, tiles: Tiling, floors: Tensor | None = None, first: Tensor | None = None
) -> dict[str, Any]:
    """The arguments by which ``final_tile`` and ``drawn_tile`` know a step: matrices, tables, partial sums.

    ``floors`` [n] float32: what the plausibility masks leave; ``first``: where the first source of each sequence has
    its rows, if not in ``logits``. Launches the kernel that finds the normalisers of what is not linear.
    """
    # ``parts`` [n, sources, 2, tiles] takes maximum and mass of every source, and is empty where all rules are linear.
    n, sources = tables.source_rows.shape
    first = logits if first is None else first
    shared: dict[str, Any] = {
        "first": first,
        "first_stride": first.stride(0),
        "logits": logits,
        "stride": logits.stride(0),
        "source_rows": tables.source_rows,
        "weights": tables.weights,
        "sources": sources,
        "parts": torch.empty(
            (0 if tables.linear else n, sources, 2, tiles.tiles), dtype=torch.float32, device=logits.device
        ),
        "int_params": tables.int_params,
        "vocabulary": logits.shape[1],
        "tiles": tiles.tiles,
    }
    if not tables.linear:
        _measure[(n * sources, tiles.tiles)](**shared, BLOCK=tiles.block, num_warps=WARPS, enable_fp_fusion=False)
    return shared | {
        "float_params": tables.float_params,
        "floors": tables.float_params[:0, 0] if floors is None else floors,
        "candidates": tables.candidates,
        "values": tables.values,
        "most_candidates": tables.candidates.shape[1],
        "allowed": tables.allowed,
        "biased": tables.biased,
        "biases": tables.biases,
        "most_biases": tables.biased.shape[1],
        "counts": tables.counts,
        "seen": tables.seen,
        "counts_stride": tables.counts.shape[1],
    }


def shared_signature(dtype: torch.dtype) -> dict[str, str]:
    """The types of what ``sources_of`` gives for logits of ``dtype``."""
    longs = ("source_rows", "candidates", "biased")
    floats = ("weights", "parts", "float_params", "floors", "values", "biases")
    plain = ("sources", "first_stride", "stride", "most_candidates", "most_biases", "counts_stride")
    return (
        {name: POINTERS[dtype] for name in ("first", "logits")}
        | {name: POINTERS[torch.int64] for name in longs}
        | {name: POINTERS[torch.float32] for name in floats}
        | {name: POINTERS[torch.int32] for name in ("int_params", "counts")}
        | {name: POINTERS[torch.bool] for name in ("seen", "allowed")}
        | {name: "i32" for name in (*plain, "vocabulary", "tiles")}
    )


def variants() -> list[Variant]:
    """The kernel for normalisers, for every dtype."""
    matrices, tables = ("first", "first_stride", "logits", "stride"), ("source_rows", "weights", "sources")
    arguments = (*matrices, *tables, "parts", "int_params")
    built = []
    for dtype in DTYPES:
        shared = shared_signature(dtype)
        signature = {key: shared[key] for key in (*arguments, "vocabulary", "tiles")}
        name = f"score_tile normalisers {str(dtype)[6:]}"
        built.append(Variant(name, _measure, signature, {"BLOCK": BLOCK}, WARPS, 1, fp_fusion=False))
    return built
