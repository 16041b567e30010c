"""One decoding step from the sources' logits to tokens and logprobs: combine, penalise, truncate, draw, in as few
passes over the vocabulary as can be.

1. ``summarise``, one program per tile: reads each source once and keeps maximum, mass and the best token after noise.
   Greedy and untruncated rows are drawn from that; a row of scores is never written.
2. ``find_bounds``, one program per row, and ``keep``, one program per tile of a truncated row: from the summaries
   follows a bound below which nothing survives top-k, top-p and min-p. What lies above it, hundreds of tokens of a
   hundred thousand, is made again and written down.
3. ``draw``, one program per row: finds the least score that survives by narrowing an interval around it, without a
   sort, and draws.
4. ``_list_best``, one program per tile of a row that wants alternatives: lists its best tokens.
5. ``_report``, one program per row: makes one tile again for the logprob, merges the lists.

Before them come the KL budgets (``trust_region``) and temperatures that follow the entropy, which few sequences have;
behind them the scores of traced sequences are written down.

Minimum bytes of a step, V tokens of b bytes: every source of weight other than 0 is read once, and nothing of the size
of the vocabulary is written: the sum over sequences of sources * V * b. Beside that minimum this reads
  - the sources of truncated sequences once more (from the GPU's cache where all logits of the step fit there);
  - those of sequences whose rule needs log-probabilities once more, for their normalisers;
  - the row that a plausibility mask asks three times, one of them together with its sources;
  - those of sequences that want alternatives once more;
  - 5 V bytes of counts for sequences with penalties, each time their scores are made;
and 8 bytes for every token that may survive, 88 for every tile.

Noise is a hash of (key, token), so a row draws what the reference draws; tiles depend on the vocabulary alone, so what
shares the batch changes no sum.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels import step_tables
from ladle.kernels.entropy import entropy_temperatures
from ladle.kernels.gpu.draw import draw, width
from ladle.kernels.gpu.score_rows import combine
from ladle.kernels.gpu.score_tile import (
    BLOCK,
    DTYPES,
    PADDED,
    WARPS,
    WARPS_FULL,
    Tiling,
    final_tile,
    merge_parts,
    rows_apart,
    shared_signature,
    sources_of,
    tiling,
)
from ladle.kernels.gpu.truncation import GROUPS, SUMS, find_bounds, keep, order, scratch_signature, summarise, value_of
from ladle.kernels.gpu.trust_region import keep_to_budgets
from ladle.kernels.gpu.variant import POINTERS, Variant
from ladle.kernels.step_tables import SampledTokens, StepTables, plain_tables

_INT_PARAMS = tl.constexpr(step_tables.INT_PARAMS)
_WANTED = tl.constexpr(step_tables.WANTED)
_SUMS = tl.constexpr(SUMS)
_LOWEST = tl.constexpr(-(2**31))


@triton.jit
def _list_best(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
    candidates, values, most_candidates, allowed, vocabulary, tiles, best_keys, best_tokens, most_wanted,
    BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The best tokens of one tile of a sequence that wants alternatives, by its combined scores, best first."""
    sequence = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    wanted = tl.minimum(tl.load(int_params + sequence * _INT_PARAMS + _WANTED), most_wanted)
    if wanted == 0:
        return
    score, columns, inside = final_tile(
        first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
        candidates, values, most_candidates, allowed, sequence, tile, vocabulary, tiles, True, BLOCK, TILES,
    )  # fmt: skip
    # Scores as integers of the same order: taking the best and striking it out is exact, and ties go to the lower id.
    key = tl.where(inside, order(tl.where(score == score, score, float("-inf"))), _LOWEST)
    place = (sequence * tiles + tile) * most_wanted
    for turn in range(0, wanted):
        top = tl.max(key, 0)
        token = tl.min(tl.where(key == top, columns, vocabulary), 0)
        tl.store(best_keys + place + turn, top)
        tl.store(best_tokens + place + turn, token)
        key = tl.where(columns == token, _LOWEST, key)


@triton.jit
def _report(  # type: ignore[no-untyped-def]
    first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
    candidates, values, most_candidates, allowed, vocabulary, tiles, sums, best_keys, best_tokens, tokens, logprobs,
    other_tokens, other_logprobs, most_wanted, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The token's logprob, for which one tile is made again, and the best tokens of all tiles."""
    sequence = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILES)
    token = tl.load(tokens + sequence).to(tl.int32)
    score, columns, _inside = final_tile(
        first, first_stride, logits, stride, source_rows, weights, sources, parts, int_params, float_params, floors,
        candidates, values, most_candidates, allowed, sequence, token // BLOCK, vocabulary, tiles, True, BLOCK, TILES,
    )  # fmt: skip
    # A gather of one element: Triton cannot index a tensor in registers, so all others are summed up as 0.
    own = tl.sum(tl.where(columns == token, score, 0.0), 0)
    place = sums + sequence * _SUMS * tiles
    # The normaliser of the row from its tiles: logprob = (score - max) - log sum exp(score - max).
    best, mass = merge_parts(place, place + tiles, lane, lane < tiles)
    tl.store(logprobs + sequence, (own - best) - mass)
    wanted = tl.minimum(tl.load(int_params + sequence * _INT_PARAMS + _WANTED), most_wanted)
    place = (sequence * tiles + lane) * most_wanted
    # The tiles' lists are merged: at is how many of each have been taken, key the best that each has left.
    at = tl.full([TILES], 0, tl.int32)
    for turn in range(0, wanted):
        left = (lane < tiles) & (at < wanted)
        key = tl.load(best_keys + place + at, mask=left, other=_LOWEST)
        top = tl.max(key, 0)
        tile = tl.min(tl.where(key == top, lane, TILES), 0)
        chosen = tl.load(
            best_tokens + (sequence * tiles + tile) * most_wanted + tl.sum(tl.where(lane == tile, at, 0), 0)
        )
        tl.store(other_tokens + sequence * most_wanted + turn, chosen.to(tl.int64))
        tl.store(other_logprobs + sequence * most_wanted + turn, (value_of(top) - best) - mass)
        at += (lane == tile).to(tl.int32)


_REPORTED = (
    "first", "first_stride", "logits", "stride", "source_rows", "weights", "sources", "parts", "int_params",
    "float_params", "floors", "candidates", "values", "most_candidates", "allowed", "vocabulary", "tiles",
)  # fmt: skip
_DRAWN = ("int_params", "float_params", "vocabulary", "tiles")
_LEAN = {"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": False}
_FULL = {**_LEAN, "num_warps": WARPS_FULL}


def fused_step(logits: Tensor, tables: StepTables, *, block: int | None = None) -> SampledTokens:
    """See ``reference.step.fused_step``; ``block``: tokens per tile (see ``tiling``)."""
    if len(tables.source_rows) == 0:
        return _nothing(logits)
    # KL budgets and temperatures by entropy cost nothing where no sequence has them; where one has, the step waits for
    # the host and cannot be recorded.
    logits, tables = keep_to_budgets(rows_apart(logits), tables, block)
    launch = _Launch(logits, _warmed(logits, tables, block), tiling(logits.shape[1], block))
    launch.summarise()
    return launch.report(launch.draw()[0])


def guided_scores(logits: Tensor, tables: StepTables, *, block: int | None = None) -> Tensor:
    """See ``reference.step.guided_scores``; ``block``: tokens per tile (see ``tiling``)."""
    logits, tables = keep_to_budgets(rows_apart(logits), tables, block)
    floors = _floors(logits, tables, tiling(logits.shape[1], block).block) if tables.masks else None
    return _guided(logits, tables, floors, block)


def drawn(logits: Tensor, tables: StepTables, *, block: int | None = None) -> tuple[Tensor, Tensor]:
    """The tokens [n] of a step whose logprobs nobody wants, and the least scores after temperature that could be drawn
    [n] float32, -inf where nothing was cut."""
    logits = rows_apart(logits)
    if len(tables.source_rows) == 0:
        return _nothing(logits).tokens, _nothing(logits).logprobs
    launch = _Launch(logits, tables, tiling(logits.shape[1], block))
    launch.summarise()
    return launch.draw()


def reported(logits: Tensor, tables: StepTables, tokens: Tensor, *, block: int | None = None) -> SampledTokens:
    """A step whose ``tokens`` [n] int64 are given."""
    logits = rows_apart(logits)
    if len(tables.source_rows) == 0:
        return _nothing(logits)
    launch = _Launch(logits, tables, tiling(logits.shape[1], block))
    launch.summarise()
    return launch.report(tokens.contiguous())


def _nothing(logits: Tensor) -> SampledTokens:
    tokens, floats = logits.new_empty(0, dtype=torch.int64), logits.new_empty(0, dtype=torch.float32)
    return SampledTokens(tokens, floats, tokens.view(0, 0), floats.view(0, 0), floats.view(0, logits.shape[1]))


class _Launch:
    """The kernels of one step and what lies between them."""

    def __init__(self, logits: Tensor, tables: StepTables, tiles: Tiling) -> None:
        self._tables = tables
        self._logits = logits
        self._tiles = tiles
        self._n = len(tables.source_rows)
        self._floors = _floors(logits, tables, tiles.block) if tables.masks else None
        self._shared = sources_of(logits, tables, tiles, self._floors)
        # What the launches depend on (shapes, ``plain``, ``truncates``, ``wanted``) is known on the host, so that a
        # step can be recorded as a CUDA graph.
        self._shapes = {"BLOCK": tiles.block, "TILES": tiles.padded}
        self._sums = self._scratch(SUMS, tiles.tiles)
        self._best_ids = self._scratch(tiles.tiles, dtype=torch.int32)
        listed = tiles.tiles if tables.truncates else 0
        # The lists could hold every token of every row; only the survivors are written, and without truncation there
        # are none.
        self._tops = self._scratch(listed, GROUPS)
        self._lists = {
            "kept": self._scratch(listed, tiles.block),
            "kept_ids": self._scratch(listed, tiles.block, dtype=torch.int32),
            "kept_counts": self._scratch(listed, dtype=torch.int32),
        }

    def _scratch(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._logits.new_empty((self._n, *shape), dtype=dtype)

    def summarise(self) -> None:
        grid = (self._n, self._tiles.tiles)
        made = {"sums": self._sums, "best_ids": self._best_ids, "tops": self._tops}
        full = not self._tables.plain
        options = _FULL if full else _LEAN
        summarise[grid](**self._shared, **made, **self._shapes, FULL=full, GROUPS=GROUPS, **options)

    def draw(self) -> tuple[Tensor, Tensor]:
        # The draw reads tables and summaries alone; the logits are not touched again.
        known = {name: self._shared[name] for name in _DRAWN}
        # Only where top-k, top-p or min-p cut a row: bound the survivors, then write them down. Rows that are not cut
        # leave both kernels at once.
        if self._tables.truncates:
            bounds = {"sums": self._sums, "bounds": self._scratch()}
            sizes = {"TILES": self._tiles.padded, "GROUPS": GROUPS}
            find_bounds[(self._n,)](**known, **bounds, tops=self._tops, **sizes, **_LEAN)
            keep[(self._n, self._tiles.tiles)](**self._shared, **bounds, **self._lists, **self._shapes, **_FULL)
        tokens, thresholds = self._scratch(dtype=torch.int64), self._scratch()
        draw[(self._n,)](
            **known,
            **{"sums": self._sums, "best_ids": self._best_ids, **self._lists},
            **{"tokens": tokens, "thresholds": thresholds},
            **{**self._shapes, "WIDTH": width(self._tiles.padded)},
            **_LEAN,
        )
        return tokens, thresholds

    def report(self, tokens: Tensor) -> SampledTokens:
        # The most that any sequence wants: each stops at its own number, and the rest of its row keeps -1 and -inf.
        wanted = min(self._tables.wanted, self._logits.shape[1])
        shared = {name: self._shared[name] for name in _REPORTED}
        lists = {
            "best_keys": self._scratch(self._tiles.tiles, wanted, dtype=torch.int32),
            "best_tokens": self._scratch(self._tiles.tiles, wanted, dtype=torch.int32),
            "most_wanted": wanted,
        }
        if wanted:
            _list_best[(self._n, self._tiles.tiles)](**shared, **lists, **self._shapes, **_FULL)
        logprobs = self._scratch()
        others = self._scratch(wanted, dtype=torch.int64).fill_(-1)
        other_logprobs = self._scratch(wanted).fill_(-torch.inf)
        made = {"logprobs": logprobs, "other_tokens": others, "other_logprobs": other_logprobs}
        _report[(self._n,)](**shared, **lists, sums=self._sums, tokens=tokens, **made, **self._shapes, **_FULL)
        return SampledTokens(tokens, logprobs, others, other_logprobs, self._traced())

    def _traced(self) -> Tensor:
        traced = self._tables.traced
        if len(traced) == 0:
            return self._logits.new_empty((0, self._logits.shape[1]), dtype=torch.float32)
        floors = None if self._floors is None else self._floors.index_select(0, traced)
        return _guided(self._logits, self._tables.of(traced), floors, self._tiles.block)


def _guided(logits: Tensor, tables: StepTables, floors: Tensor | None, block: int | None) -> Tensor:
    """The scores before ``allowed``, penalties and logit bias; ``floors``: what the plausibility masks leave."""
    # A mask finds what is not allowed implausible, but what the kernel compares with the floors is the base as it is.
    int_params = tables.int_params
    allowed = torch.where(int_params[:, step_tables.BASE] >= 0, int_params[:, step_tables.ALLOWED], -1)
    return combine(logits, tables.changed(allowed=allowed, counted=-1, biases=0), floors=floors, block=block)


def _warmed(logits: Tensor, tables: StepTables, block: int | None) -> StepTables:
    """``tables`` with the temperatures of sequences for which they follow the entropy. What these are drawn from is
    written down for it; without such sequences ``tables`` are what they were."""
    warmed, spreads, exponents = tables.ranges
    if len(warmed) == 0:
        return tables
    own = tables.of(warmed)
    # The same step up to the draw, of these sequences alone: their entropy is that of what they are drawn from.
    floors = _floors(logits, own, tiling(logits.shape[1], block).block) if tables.masks else None
    float_params = tables.float_params.clone()
    kept = own.float_params[:, step_tables.TEMPERATURE]
    drawn = combine(logits, own, floors=floors, block=block)
    float_params[warmed, step_tables.TEMPERATURE] = entropy_temperatures(drawn, kept, spreads, exponents)
    return replace(tables, float_params=float_params, ranges=tables.ranges.none())


def _floors(logits: Tensor, tables: StepTables, block: int) -> Tensor:
    """The least score of its base row that each sequence's plausibility mask leaves; -inf without a mask."""
    base = tables.int_params[:, step_tables.BASE].long()
    ones = torch.ones_like(tables.weights[:, :1])
    # A step of its own, whose only source is the base and whose truncation is the mask: its threshold is the floor.
    asked = plain_tables(base.clamp(min=0)[:, None], ones).changed(
        temperature=(base >= 0).float(),
        top_k=tables.int_params[:, step_tables.MASK_TOP_K],
        top_p=tables.float_params[:, step_tables.MASK_TOP_P],
        min_p=tables.float_params[:, step_tables.MASK_RELATIVE],
        allowed=tables.int_params[:, step_tables.ALLOWED],
    )
    return drawn(logits, replace(asked, allowed=tables.allowed, truncates=True), block=block)[1]


def variants() -> list[Variant]:
    """Every dtype, for vocabularies of up to 262 k."""
    lists = scratch_signature("best_keys", "best_tokens") | {"most_wanted": "i32"}
    results = {"tokens": POINTERS[torch.int64], "other_tokens": POINTERS[torch.int64]}
    results |= scratch_signature("sums", "logprobs", "other_logprobs")
    built = []
    for dtype in DTYPES:
        shared = shared_signature(dtype)
        signature = {name: shared[name] for name in _REPORTED} | lists
        constants, name = {"BLOCK": BLOCK, "TILES": PADDED}, str(dtype)[6:]
        for kind, kernel, given in (("best", _list_best, signature), ("report", _report, signature | results)):
            title = f"fused_step {kind} {name}"
            built.append(Variant(title, kernel, given, constants, WARPS_FULL, 1, fp_fusion=False))
    return built
