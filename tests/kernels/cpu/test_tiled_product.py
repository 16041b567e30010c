"""Tiled products against the formula in float64, and the promise that a row's bits do not depend on the other rows."""

import re
import sys

import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

from ladle.kernels import dispatch
from ladle.kernels.cpu import row_limit
from ladle.kernels.cpu.digits import has_digits
from ladle.kernels.cpu.tiled_product import TiledProduct, can_hold, quantise, stack
from ladle.kernels.cpu.tiles import has_pairs

DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not has_pairs(), reason="no pairs"))]
ROWS = (0, 1, 2, 3, 5, 6, 7, 13, 16, 33, 63, 64)


class Case:
    """Random weights of what the packed form holds exactly, and factors for them."""

    def __init__(
        self, out: int, size: int, ranks: int, bias: bool, dtype: torch.dtype, quantized: bool = False
    ) -> None:
        def draw(*shape: int) -> Tensor:
            return (torch.randn(shape) * 0.2).bfloat16().half().float()

        self.weight, self.shrink, self.expand = draw(out, size), draw(ranks, size), draw(out, ranks)
        self.bias = torch.randn(out) if bias else None
        self.dtype = dtype
        self.product = TiledProduct(
            self.weight, self.bias, self.shrink, self.expand, dtype, quantized, rounded=quantized
        )

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        scale = torch.randn(count, self.shrink.shape[0]) * (torch.rand(count, self.shrink.shape[0]) < 0.6)
        return torch.randn(count, self.weight.shape[1]).to(self.dtype), scale

    def expected(self, x: Tensor, scale: Tensor | None) -> Tensor:
        y = x.double() @ self.weight.double().T
        y = y if self.bias is None else y + self.bias.double()
        if scale is None:
            return y
        return y + (x.double() @ self.shrink.double().T * scale.double()) @ self.expand.double().T


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("out", "size", "ranks"), [(64, 48, 0), (33, 17, 3), (200, 72, 40), (200, 96, 40), (5, 32, 1), (5, 2, 1)]
)
def test_product_equals_float64(dtype: torch.dtype, out: int, size: int, ranks: int) -> None:
    torch.manual_seed(fresh_seed())
    size += size % 2 * (dtype == torch.bfloat16)  # it takes pairs
    case = Case(out, size, ranks, bool(out % 2), dtype)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    for count in ROWS:
        x, scale = case.rows(count)
        for given in (scale, None):
            y, expected = case.product(x, given), case.expected(x, given)
            assert y.dtype == dtype and y.shape == expected.shape
            assert torch.linalg.vector_norm(y.double() - expected) <= bound * torch.linalg.vector_norm(expected)


def as_multiplied(x: Tensor) -> Tensor:
    """Rows as int8 weights are multiplied with: in 65,279 steps from the largest number to its negative, or as are."""
    if not has_digits():
        return x.double()
    step = x.double().abs().amax(dim=1, keepdim=True) / 32639
    return (x.double() / step).round() * step


def test_int8_is_the_nearest_step_of_each_output() -> None:
    torch.manual_seed(fresh_seed())
    weight, shrink, expand = torch.randn(50, 60), torch.randn(5, 60).half().float(), torch.randn(50, 5).half().float()
    weight[7] = 0
    held, steps = quantise(weight)
    rounded = held.double() * torch.from_numpy(steps).double()[:, None]
    assert ((rounded - weight).abs() <= torch.from_numpy(steps)[:, None] * 0.5001).all() and held.abs().max() == 127
    product = TiledProduct(weight, torch.ones(50), shrink, expand, torch.float32, quantized=True)
    for count in (1, 3, 9):
        x, scale = torch.randn(count, 60), torch.randn(count, 5)
        expected = as_multiplied(x) @ rounded.T + 1
        expected += (x.double() @ shrink.double().T * scale.double()) @ expand.double().T
        # A number that lies between two steps may be rounded to either.
        largest = float(x.abs().max() / 32639 * rounded.abs().max()) if has_digits() else 0.0
        assert torch.allclose(product(x, scale).double(), expected, rtol=1e-5, atol=1e-5 + largest)
    assert product.product.weight.nbytes == 64 * (64 if has_digits() else 60)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_rows_do_not_depend_on_each_other(dtype: torch.dtype) -> None:
    """Of int8: its weights, which are multiplied with float32."""
    torch.manual_seed(fresh_seed())
    quantized = dtype == torch.int8
    case = Case(130, 128, 20, True, torch.float32 if quantized else dtype, quantized)
    x, scale = case.rows(70)
    whole = case.product(x, scale)
    for count in (1, 2, 3, 6, 7, 16, 17, 32, 33, 64):
        rows = torch.randperm(70)[:count]
        assert torch.equal(case.product(x[rows], scale[rows]), whole[rows]), count


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_ranks_that_only_others_ask_for_leave_no_mark(dtype: torch.dtype) -> None:
    torch.manual_seed(fresh_seed())
    quantized = dtype == torch.int8
    case = Case(70, 64, 150, True, torch.float32 if quantized else dtype, quantized)
    x, _ = case.rows(40)
    # Members of 1 to 40 ranks, of which each row asks for two, or for none.
    starts = [0, 1, 17, 32, 60, 64, 100, 140, 150]
    scale = torch.zeros(40, 150)
    for row in range(40):
        for member in torch.randperm(8)[:2] if row % 5 else ():
            scale[row, starts[member] : starts[member + 1]] = torch.randn(())
    whole = case.product(x, scale)
    for count in (1, 2, 5, 17, 39):
        rows = torch.randperm(40)[:count]
        assert torch.equal(case.product(x[rows], scale[rows]), whole[rows]), count
    assert torch.equal(whole[::5], case.product(x[::5], None))
    if not quantized:
        error = torch.linalg.vector_norm(whole.double() - case.expected(x, scale), dim=1)
        bound = 1e-5 if dtype == torch.float32 else 1e-2
        assert (error <= bound * torch.linalg.vector_norm(case.expected(x, scale), dim=1)).all()


def test_stacked_products_are_what_they_were_and_share_their_memory() -> None:
    torch.manual_seed(fresh_seed())
    cases = [Case(48, 32, ranks, True, torch.float32) for ranks in (3, 20)]
    given = [case.rows(4) for case in cases]
    before = [case.product(*rows) for case, rows in zip(cases, given, strict=True)]
    stacked = stack([case.product for case in cases])
    assert stacked.weight.shape[0] == 2 and stacked.expand.shape[1] == 20
    for case, rows, wanted in zip(cases, given, before, strict=True):
        assert torch.equal(case.product(*rows), wanted)
    stacked.bias[1] += 1
    assert torch.allclose(cases[1].product(*given[1]), before[1] + 1, atol=1e-5)


def test_what_cannot_be_held_is_not() -> None:
    weight = torch.randn(8, 8)
    assert can_hold(weight, torch.float32) and not can_hold(weight, torch.float64)
    weight[1, 1] = 1e6
    assert not can_hold(weight, torch.float32) and not can_hold(torch.randn(8, 7), torch.bfloat16)
    assert dispatch.tiled_product(torch.randn(8, 8), None, None, None, torch.float32, 0, False) is None
    assert dispatch.tiled_product(torch.randn(8, 8), None, None, None, torch.float32, 9, True) is None
    assert dispatch.tiled_product(weight, None, None, None, torch.float32, 9, False) is None


def test_int8_takes_weights_that_float16_does_not_and_says_what_else_is_wrong() -> None:
    weight, rows = torch.randn(8, 62) * 1e6, torch.randn(3, 62)
    product = dispatch.tiled_product(weight, None, None, None, torch.float32, 9, False, True)
    held, steps = quantise(weight)
    expected = as_multiplied(rows) @ (held.double() * torch.from_numpy(steps).double()[:, None]).T
    assert torch.allclose(product(rows, None).double(), expected, rtol=1e-5, atol=float(weight.abs().max()) * 1e-3)
    small, large = torch.randn(2, 62), torch.full((2, 62), 1e5)
    for parts, words in (
        ((weight, large, torch.randn(8, 2)), "its shrink factors: its largest value, 1e[+]05, is beyond 6.55e[+]04"),
        ((weight, small, torch.randn(8, 2) * 1e6), "its expand factors: its largest value"),
        ((torch.full((8, 62), torch.inf), None, None), "the layer: its largest value, inf"),
    ):
        assert re.match(words, dispatch.tiling_obstacle(*parts, torch.float32, True) or "")
        assert dispatch.tiled_product(parts[0], None, *parts[1:], torch.float32, 9, False, True) is None
    assert dispatch.tiling_obstacle(weight, small, torch.randn(8, 2), torch.float32, True) is None
    reason = dispatch.tiling_obstacle(weight, None, None, torch.float64, True)
    assert reason is not None and "torch.float64" in reason


def test_how_many_rows_take_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by trying: here with a library's product that is quicker from 64 rows on."""
    taken: dict[bool, float] = {}

    def as_quick(rows: Tensor, tiled: object, packed: object) -> bool:
        return len(rows) / 1e6 <= taken.get(len(rows) >= 64, 1.0)

    monkeypatch.setattr(row_limit, "_as_quick", as_quick)
    monkeypatch.setattr(row_limit, "_PAUSE_S", 0)
    monkeypatch.setattr(row_limit, "has_other_unit", lambda dtype: True)
    row_limit._quickest.cache_clear()
    try:
        assert row_limit.tiled_rows(torch.float32, 1 << 40) == sys.maxsize
        row_limit._quickest.cache_clear()
        taken[True] = 0.0
        assert row_limit.tiled_rows(torch.float32, 1000) == 32
        assert row_limit.tiled_rows(torch.float32, 1 << 40) == 0  # two copies would be too much
        monkeypatch.setattr(row_limit, "has_other_unit", lambda dtype: False)
        row_limit._quickest.cache_clear()
        assert row_limit.tiled_rows(torch.float32, 1000) == sys.maxsize  # nothing else could be the quicker one
    finally:
        row_limit._quickest.cache_clear()
