"""Score rows in one pass over the vocabulary: rules over sources, candidate values, mask, penalties, logit bias.

Every program makes one tile of one sequence's row (``score_tile``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels.gpu.score_tile import (
    BLOCK,
    DTYPES,
    PADDED,
    WARPS,
    WARPS_FULL,
    drawn_tile,
    final_tile,
    rows_apart,
    shared_signature,
    sources_of,
    tiling,
)
from ladle.kernels.gpu.variant import POINTERS, Variant
from ladle.kernels.step_tables import StepTables


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    out, out_stride, first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params,
    float_params, floors, candidates, values, most_candidates, allowed, biased, biases, most_biases, counts, seen,
    counts_stride, vocabulary, tiles,
    FULL: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    # One program per sequence and tile of the vocabulary: it reads that tile of every source once and writes one row's.
    sequence = tl.program_id(0)
    tile = tl.program_id(1)
    score, columns, inside = final_tile(
        first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
        candidates, values, most_candidates, allowed, sequence, tile, vocabulary, tiles, FULL, BLOCK, TILES,
    )  # fmt: skip
    if FULL:
        # Penalties and logit bias; with neither the launch leaves this out altogether.
        score = drawn_tile(
            score, columns, inside, int_params, float_params, biased, biases, most_biases, counts, seen, counts_stride,
            sequence, tile, BLOCK,
        )  # fmt: skip
    tl.store(out + sequence.to(tl.int64) * out_stride + columns, score, mask=inside)


def combine(
    logits: Tensor,
    tables: StepTables,
    out: Tensor | None = None,
    floors: Tensor | None = None,
    first: Tensor | None = None,
    block: int | None = None,
) -> Tensor:
    """The scores of every sequence of ``tables`` with all that these hold up to the penalties: [n, vocabulary] float32.

    ``out`` may be ``logits`` or ``first`` if every sequence has one row there, its own. See ``sources_of``.
    """
    # Kernels step through a row one token at a time in memory: a transposed matrix is copied first.
    logits, first = rows_apart(logits), None if first is None else rows_apart(first)
    n, vocabulary = len(tables.source_rows), logits.shape[1]
    out = torch.empty((n, vocabulary), dtype=torch.float32, device=logits.device) if out is None else out
    if n == 0 or vocabulary == 0:
        return out
    tiles = tiling(vocabulary, block)
    _combine[(n, tiles.tiles)](
        out=out,
        out_stride=out.stride(0),
        **sources_of(logits, tables, tiles, floors, first),
        FULL=not tables.plain,
        BLOCK=tiles.block,
        TILES=tiles.padded,
        # The full form holds a tile's scores, ids and masks at once: with more warps its registers would spill.
        num_warps=WARPS if tables.plain else WARPS_FULL,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return out


def variants() -> list[Variant]:
    """Every dtype and layout for vocabularies of up to 262 k."""
    built = []
    for dtype in DTYPES:
        signature = {"out": POINTERS[torch.float32], "out_stride": "i32", **shared_signature(dtype)}
        for full in (False, True):
            constants = {"FULL": full, "BLOCK": BLOCK, "TILES": PADDED}
            name = f"score_rows {'full' if full else 'linear'} {str(dtype)[6:]}"
            warps = WARPS_FULL if full else WARPS
            built.append(Variant(name, _combine, signature, constants, warps, 1, fp_fusion=False))
    return built
