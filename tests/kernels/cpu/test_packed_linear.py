"""PackedLinear against the float64 product, and the promise that a row's bits do not depend on the other rows."""

import random

import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

from ladle.kernels.cpu import packed_linear
from ladle.kernels.cpu.packed_linear import PackedLinear

ROWS = (0, 1, 2, 3, 7, 16, 33, 130)
RELATIVE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _operands(rng: random.Random, rows: int, bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    out, inner = rng.choice([(5, 5), (33, 17), (64, 96), (200, 72), (320, 32)])
    weight = torch.randn(out, inner).to(dtype)
    return torch.randn(rows, inner).to(dtype), weight, torch.randn(out).to(dtype) if bias else None


def _expected(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None) -> Tensor:
    y = x.double() @ weight.double().T
    for term in (bias, addend):
        y = y if term is None else y + term.double()
    return y


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("dtype", list(RELATIVE), ids=str)
def test_product_equals_float64(dtype: torch.dtype, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "can_pack", lambda: packs)
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    for rows in ROWS:
        for bias in (False, True):
            for with_addend in (False, True):
                x, weight, shift = _operands(rng, rows, bias, dtype)
                addend = torch.randn(rows, weight.shape[0]).to(dtype) if with_addend else None
                kept = None if addend is None else addend.clone()
                y = PackedLinear(weight, shift, dtype)(x, addend)
                expected = _expected(x, weight, shift, addend)
                assert y.shape == expected.shape and y.dtype == dtype
                scale = (x.double().abs() @ weight.double().abs().T) + 1
                assert ((y.double() - expected).abs() / scale).amax().item() <= RELATIVE[dtype] if rows else True
                assert addend is None or kept is None or torch.equal(addend, kept), "the addend was overwritten"


def test_weight_and_bias_are_copied() -> None:
    torch.manual_seed(fresh_seed())
    for dtype in (torch.float32, torch.float64):
        weight = torch.randn(8, 8, dtype=dtype)
        bias = torch.randn(8, dtype=dtype)
        x = torch.randn(3, 8, dtype=dtype)
        layer = PackedLinear(weight, bias, dtype)
        before = layer(x).clone()
        weight.zero_()
        assert torch.equal(layer(x), before)


def test_strided_operands_equal_contiguous_ones() -> None:
    """The engine passes slices of a wider product as addend, and rows that are views."""
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    for rows in ROWS:
        x, weight, _ = _operands(rng, rows, False, torch.float32)
        out, inner = weight.shape
        layer = PackedLinear(weight, None, torch.float32)
        wide = torch.randn(rows, out + 24)
        x_wide = torch.randn(rows, inner + 3)
        x_wide[:, :inner] = x
        expected = layer(x, wide[:, :out].clone())
        assert torch.equal(layer(x, wide[:, :out]), expected)
        assert torch.equal(layer(x_wide[:, :inner], wide[:, :out]), expected)
        assert torch.equal(layer(x.T.contiguous().T, wide[:, :out]), expected)


@pytest.mark.parametrize(("out", "inner"), [(5, 5), (33, 17), (96, 576), (1000, 72), (576, 1536)])
@pytest.mark.parametrize("threads", [1, 2])
def test_row_bits_do_not_depend_on_the_other_rows(out: int, inner: int, threads: int) -> None:
    if not packed_linear.can_pack():
        pytest.skip("this build of torch has no oneDNN packing, so nothing is promised")
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer = PackedLinear(torch.randn(out, inner), torch.randn(out), torch.float32)
        x, addend = torch.randn(150, inner), torch.randn(150, out)
        whole, whole_added = layer(x), layer(x, addend)
        for count in [1, 2, 3, 4, 5, 8, 9, 16, 17, 64, *(rng.randint(1, 150) for _ in range(8))]:
            rows = torch.tensor(rng.sample(range(150), count))
            assert torch.equal(layer(x[rows]), whole[rows]), (count, rows)
            assert torch.equal(layer(x[rows], addend[rows]), whole_added[rows]), (count, rows)
        assert torch.equal(layer(x, torch.zeros_like(addend)), whole)
    finally:
        torch.set_num_threads(before)


def test_nbytes_counts_every_layout() -> None:
    weight = torch.randn(32, 48)
    assert PackedLinear(weight, None, torch.float32).nbytes == 32 * 48 * 4
    assert PackedLinear(weight.double(), None, torch.float64).nbytes == 32 * 48 * 8
