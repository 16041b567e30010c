"""Routing on a GPU: a router's scores become the experts of the next token, their shares, and the rows of logits that
``fused_step`` then adds to the router's, without a word to the host.

One program per sequence: there are few experts, and their scores are in its registers at once.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels import step_tables
from ladle.kernels.gpu.score_rows import combine
from ladle.kernels.gpu.score_tile import DTYPES
from ladle.kernels.gpu.truncation import order
from ladle.kernels.gpu.variant import POINTERS, Variant
from ladle.kernels.step_tables import RoutedRows, plain_tables

_LINEAR = tl.constexpr(step_tables.LINEAR)
_ROUTED = tl.constexpr(step_tables.ROUTED)
_LOWEST = tl.constexpr(-(2**31))
_HIGHEST = tl.constexpr(2**31 - 1)
_OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


@triton.jit
def _keys(scores, stride, row, experts, EXPERTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(scores, integers that are ordered as they are, NaN the greatest), of one row."""
    expert = tl.arange(0, EXPERTS)
    x = tl.load(scores + row * stride + expert, mask=expert < experts, other=0.0).to(tl.float32)
    key = tl.where(x == x, order(tl.where(x == x, x, 0.0)), _HIGHEST)
    return x, tl.where(expert < experts, key, _LOWEST)


@triton.jit
def _route(scores, stride, previous, stayed, stay, chosen, experts, EXPERTS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    _x, key = _keys(scores, stride, row, experts, EXPERTS)
    # Argmax, the first of equal ones; a NaN is the greatest, as in torch.
    best = tl.min(tl.where(key == tl.max(key, 0), tl.arange(0, EXPERTS), EXPERTS), 0).to(tl.int64)
    last = tl.load(previous + row)
    # Hysteresis: an expert that was switched to is kept for at least ``stay`` tokens.
    held = (last >= 0) & (tl.load(stayed + row) < tl.load(stay + row))
    tl.store(chosen + row, tl.where(held, last, best))


@triton.jit
def _mix(scores, stride, top, chosen, shares, experts, EXPERTS: tl.constexpr, TOP: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    x, key = _keys(scores, stride, row, experts, EXPERTS)
    expert = tl.arange(0, EXPERTS)
    place = tl.arange(0, TOP)
    picked = tl.full([TOP], 0, tl.int32)
    said = tl.full([TOP], float("-inf"), tl.float32)
    # Top-k by selection: take the best that is left, strike it out, k times. There are few experts, all of them in
    # registers.
    for turn in range(0, top):
        best = tl.min(tl.where(key == tl.max(key, 0), expert, EXPERTS), 0)
        picked = tl.where(place == turn, best, picked)
        said = tl.where(place == turn, tl.sum(tl.where(expert == best, x, 0.0), 0), said)
        key = tl.where(expert == best, _LOWEST, key)
    # Softmax over the chosen experts alone; places beyond ``top`` hold -inf and so have no share.
    mass = tl.exp(said - tl.max(said, 0))
    tl.store(chosen + row * top + place, picked.to(tl.int64), mask=place < top)
    tl.store(shares + row * top + place, tl.math.div_rn(mass, tl.sum(mass, 0)), mask=place < top)


@triton.jit
def _lay_out(  # type: ignore[no-untyped-def]
    scores, stride, previous, stayed, stay, top, asked, router_rows, expert_rows, complement, weight, exact,
    source_rows, weights, rules, leading, lasting, experts, most, EXPERTS: tl.constexpr,
):  # fmt: skip
    # Two passes over the experts by score, each time taking the best that is left: the first sums up the softmax of the
    # chosen ones, the second writes their rows of the logits and their shares into the tables, behind the router's.
    row = tl.program_id(0).to(tl.int64)
    x, key = _keys(scores, stride, row, experts, EXPERTS)
    expert = tl.arange(0, EXPERTS)
    last = tl.load(previous + row)
    stays = tl.load(stayed + row)
    held = (last >= 0) & (stays < tl.load(stay + row))
    wanted = tl.load(top + row)
    ask = tl.load(asked + row) != 0
    # A score that is not finite makes all shares NaN, and so the sequence's scores.
    broken = tl.sum(tl.where((expert < experts) & ((x != x) | (tl.abs(x) == float("inf"))), 1, 0), 0) > 0
    best = tl.min(tl.where(key == tl.max(key, 0), expert, EXPERTS), 0)
    first = tl.where(held & (wanted == 1), last.to(tl.int32), best)
    greatest = tl.sum(tl.where(expert == first, x, 0.0), 0)
    left = tl.where(expert == first, _LOWEST, key)
    total = 1.0
    for _turn in range(1, wanted):
        other = tl.min(tl.where(left == tl.max(left, 0), expert, EXPERTS), 0)
        total += tl.exp(tl.sum(tl.where(expert == other, x, 0.0), 0) - greatest)
        left = tl.where(expert == other, _LOWEST, left)
    # One expert without normalisers is a linear sum: its weight is the request's own, and its share is not needed.
    alone = (wanted == 1) & (tl.load(exact + row) == 0)
    spoken = tl.load(weight + row)
    # Column 0 of the row of the step's tables is the router, then follow the experts by score.
    start = row * (most + 1)
    tl.store(source_rows + start, tl.load(router_rows + row))
    tl.store(weights + start, tl.where(ask, tl.load(complement + row), 1.0))
    tl.store(rules + row, tl.where(ask & (alone == 0), _ROUTED, _LINEAR))
    current = first
    left = tl.where(expert == first, _LOWEST, key)
    for turn in range(0, most):
        # The softmax over the chosen experts, relative to the first one's score; those beyond ``wanted`` get a row,
        # which must exist, and the weight 0.
        share = tl.math.div_rn(tl.exp(tl.sum(tl.where(expert == current, x, 0.0), 0) - greatest), total)
        share = tl.where(broken, float("nan"), tl.where(alone, spoken, share))
        tl.store(source_rows + start + 1 + turn, tl.load(expert_rows + row * experts + current))
        tl.store(weights + start + 1 + turn, tl.where(ask & (turn < wanted), share, 0.0))
        current = tl.minimum(tl.min(tl.where(left == tl.max(left, 0), expert, EXPERTS), 0), experts - 1)
        left = tl.where(expert == current, _LOWEST, left)
    # The routing state that the next token begins with: who spoke, and for how many tokens in a row.
    tl.store(leading + row, tl.where(ask, first.to(tl.int64), last))
    tl.store(lasting + row, tl.where(ask, tl.where(first == last, stays + 1, 1), stays))


def route_tokens(scores: Tensor, previous: Tensor, stayed: Tensor, stay: Tensor) -> Tensor:
    """See ``reference.route_tokens.route_tokens``."""
    n, experts = scores.shape
    chosen = torch.empty(n, dtype=torch.int64, device=scores.device)
    if n:
        scores = scores if scores.stride(-1) == 1 else scores.contiguous()
        history = (previous.contiguous(), stayed.contiguous(), stay.contiguous())
        _route[(n,)](scores, scores.stride(0), *history, chosen, experts, EXPERTS=_padded(experts), **_OPTIONS)
    return chosen


def mix_experts(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """See ``reference.route_tokens.mix_experts``."""
    n, experts = scores.shape
    chosen = torch.empty(n, top, dtype=torch.int64, device=scores.device)
    shares = torch.empty(n, top, dtype=torch.float32, device=scores.device)
    if n:
        scores = scores if scores.stride(-1) == 1 else scores.contiguous()
        sizes = {"EXPERTS": _padded(experts), "TOP": _padded(top)}
        _mix[(n,)](scores, scores.stride(0), top, chosen, shares, experts, **sizes, **_OPTIONS)
    return chosen, shares


def combine_routed(
    router_logits: Tensor,
    expert_logits: Tensor,
    mixture: Tensor,
    complement: Tensor,
    weight: Tensor,
    normalize: Tensor,
    *,
    block: int | None = None,
) -> Tensor:
    """See ``reference.route_tokens.combine_routed``; ``block``: tokens per tile (see ``score_tile.tiling``)."""
    n, most, vocabulary = expert_logits.shape
    factors = torch.stack([complement.double(), weight.double()], dim=1)
    factors = torch.where(normalize[:, None], factors / factors.sum(dim=1, keepdim=True), factors)
    # One that is alone has all of it, whatever its share was rounded to.
    alone = (mixture != 0).sum(dim=-1, keepdim=True) == 1
    shares = torch.where(alone, (mixture != 0).to(mixture.dtype), mixture).double()
    own = torch.arange(n, device=mixture.device)[:, None]
    others = own * most + torch.arange(most, device=mixture.device)
    tables = plain_tables(torch.cat([own, others], dim=1), torch.cat([factors[:, :1], shares], dim=1))
    tables = replace(tables.changed(rule=step_tables.ROUTED, scale=factors[:, 1]), linear=False)
    return combine(expert_logits.reshape(n * most, vocabulary), tables, first=router_logits, block=block)


def route_rows(
    scores: Tensor,
    previous: Tensor,
    stayed: Tensor,
    stay: Tensor,
    top: Tensor,
    most: int,
    asked: Tensor,
    router_rows: Tensor,
    expert_rows: Tensor,
    complement: Tensor,
    weight: Tensor,
    exact: Tensor,
) -> RoutedRows:
    """See ``reference.step.route_rows``."""
    n, experts = scores.shape
    device = scores.device
    routed_rows = RoutedRows(
        torch.empty(n, 1 + most, dtype=torch.int64, device=device),
        torch.empty(n, 1 + most, dtype=torch.float32, device=device),
        torch.empty(n, dtype=torch.int32, device=device),
        torch.empty(n, dtype=torch.int64, device=device),
        torch.empty(n, dtype=torch.int64, device=device),
    )
    if n:
        scores = scores if scores.stride(-1) == 1 else scores.contiguous()
        integers = [previous, stayed, stay, top, asked, router_rows, expert_rows]
        given = [tensor.contiguous() for tensor in (*integers, complement.float(), weight.float(), exact)]
        _lay_out[(n,)](
            scores, scores.stride(0), *given, *routed_rows, experts, most, EXPERTS=_padded(experts), **_OPTIONS
        )
    return routed_rows


def _padded(count: int) -> int:
    """The power of two that holds ``count``; 16 at least, so that there are few kernels."""
    return max(16, triton.next_power_of_2(count))


def variants() -> list[Variant]:
    """Up to 16 experts, whose scores are of any dtype."""
    long, flag = POINTERS[torch.int64], POINTERS[torch.bool]
    history = dict.fromkeys(("previous", "stayed", "stay"), long)
    floats = dict.fromkeys(("complement", "weight", "weights"), POINTERS[torch.float32])
    indices = ("top", "router_rows", "expert_rows", "source_rows", "leading", "lasting")
    laid = history | floats | dict.fromkeys(indices, long)
    laid |= {"asked": flag, "exact": flag, "rules": POINTERS[torch.int32], "most": "i32"}
    mixed = {"top": "i32", "chosen": long, "shares": POINTERS[torch.float32]}
    built = []
    for dtype in DTYPES:
        given, name = {"scores": POINTERS[dtype], "stride": "i32", "experts": "i32"}, str(dtype)[6:]
        for kind, kernel, signature, constants in (
            ("choice", _route, history | {"chosen": long}, {}),
            ("mixture", _mix, mixed, {"TOP": 16}),
            ("rows", _lay_out, laid, {}),
        ):
            title, sizes = f"route_tokens {kind} {name}", {"EXPERTS": 16, **constants}
            built.append(Variant(title, kernel, given | signature, sizes, 1, 1, fp_fusion=False))
    return built
