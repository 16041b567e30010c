"""Products in whole numbers against numpy's, digit by digit."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from seeds import fresh_seed

from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.digits import (
    MOST_INPUTS,
    cut_rows,
    has_digits,
    in_digits,
    multiply_digits,
    padded,
    room_for_digits,
    width_of,
)
from ladle.kernels.cpu.row_products import multiply, multiply_by_vectors
from ladle.kernels.cpu.tiled_product import TiledProduct, pack
from ladle.kernels.cpu.tiles import has_fours

pytestmark = pytest.mark.skipif(not has_digits(), reason="this processor does not multiply bytes by fours")
LARGEST = 127 * 256 + 127
VECTORS = pytest.mark.skipif(not has_fours(), reason="no vectors of bytes")


@njit(**INNER)
def product(x: Any, weight: Any) -> Any:
    digits = room_for_digits(x.shape[0], width_of(weight))
    cut_rows(x, width_of(weight), digits, 0, x.shape[0])
    y = np.empty((x.shape[0], weight.shape[0] * 16), np.float32)
    multiply_digits(weight, np.ones(y.shape[1], np.float32), digits, y, 0, weight.shape[0])
    return y, digits


@njit(**INNER)
def sums_of(digits: Any, weight: Any, by_vectors: bool) -> Any:
    made = np.zeros((digits.values.shape[0], weight.shape[0] * 16), np.int32)
    if by_vectors:
        multiply_by_vectors(weight, digits.values, made, 0, weight.shape[0])
    else:
        multiply(weight, digits.values, made, 0, weight.shape[0])
    return made


def drawn(rows: int, out: int, size: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(fresh_seed() + 1000 * rows + out + size)
    x = (rng.standard_normal((rows, size)) * 10.0 ** rng.integers(-6, 7, (rows, 1))).astype(np.float32)
    return x, rng.integers(-127, 128, (out, size)).astype(np.int8)


@pytest.mark.parametrize(("out", "size"), [(16, 64), (48, 120), (33, 60), (144, 250)])
def test_sums_are_exact(out: int, size: int) -> None:
    for rows in (1, 2, 3, 4, 5, 7, 15, 16, 17, 33):
        x, weight = drawn(rows, out, size)
        packed = pack(torch.from_numpy(weight))
        assert packed.dtype == np.uint8 and packed.shape == (-(-out // 16), padded(size) // 4, 64)
        y, digits = product(x, packed)
        high, low = digits.values.astype(np.int64).reshape(rows, 2, -1).transpose(1, 0, 2)
        whole = 256 * high + low
        step = np.abs(x).max(axis=1, keepdims=True) / np.float32(LARGEST)
        assert np.abs(whole).max() == LARGEST and np.array_equal(digits.scales[:, None], step)
        assert (np.abs(whole[:, :size] * step.astype(np.float64) - x) <= 0.51 * step).all()
        assert not whole[:, size:].any()
        exact = whole[:, :size] @ weight.T.astype(np.int64)
        error = np.abs(y[:, :out] - exact * step.astype(np.float64)).max(axis=1)
        assert (error <= 3e-7 * np.abs(whole).sum(axis=1) * 127 * step[:, 0]).all()


@pytest.mark.parametrize("by_vectors", [pytest.param(True, marks=VECTORS), False])
def test_both_ways_form_the_same_sums(by_vectors: bool) -> None:
    for rows in range(1, 18):
        x, weight = drawn(rows, 144, 180)
        packed = pack(torch.from_numpy(weight))
        _, digits = product(x, packed)
        expected = digits.values[:, :180].astype(np.int64) @ (weight.astype(np.int64) + 128).T
        assert np.array_equal(sums_of(digits, packed, by_vectors), expected)


def test_what_is_not_finite_and_what_is_nothing() -> None:
    x, weight = drawn(6, 32, 64)
    clean, _ = product(x, packed := pack(torch.from_numpy(weight)))
    x[1, 3], x[2, 5], x[4], x[5] = np.nan, -np.inf, 0, 1e-38
    y, _ = product(x, packed)
    assert np.isnan(y[1]).all() and np.isnan(y[2]).all()
    assert np.array_equal(y[[0, 3]], clean[[0, 3]]) and not y[4].any() and np.abs(y[5]).max() < 1e-30
    # The largest numbers that there are.
    alone = np.zeros((1, 64), np.float32)
    alone[0, 7] = 3e38
    _, digits = product(alone, packed)
    assert digits.values[:, 7].tolist() == [127, 127] and not digits.values[:, :7].any()


def test_what_is_too_long_for_whole_numbers_of_32_bits_is_multiplied_otherwise() -> None:
    most = torch.full((1, MOST_INPUTS), 127, dtype=torch.int8)
    y, _ = product(np.ones((1, MOST_INPUTS), np.float32), pack(most))
    assert math.isclose(y[0, 0], 127 * MOST_INPUTS, rel_tol=1e-6)
    longer = TiledProduct(torch.ones(1, MOST_INPUTS + 1), None, None, None, torch.float32, quantized=True)
    assert longer.product.weight.dtype == np.int8
    assert math.isclose(float(longer(torch.ones(1, MOST_INPUTS + 1), None)), MOST_INPUTS + 1, rel_tol=1e-3)


def test_what_would_be_filled_up_by_much_is_multiplied_otherwise() -> None:
    kinds = {size: pack(torch.ones(3, size, dtype=torch.int8)).dtype for size in (4, 32, 56, 57, 64, 65, 113, 114, 128)}
    assert {size for size, kind in kinds.items() if kind == np.uint8} == {57, 64, 114, 128}


def test_only_bytes_are_in_digits() -> None:
    answers = njit(**INNER)(lambda weight: in_digits(weight))
    held = {kind: answers(np.zeros((1, 1, 64), kind)) for kind in (np.uint8, np.int8, np.int16, np.uint16)}
    assert held == {np.uint8: True, np.int8: False, np.int16: False, np.uint16: False}
