"""merge_weights against float64."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not on this platform")

from kernel_device import MARKS

from ladle.kernels.gpu import merge_weights as module
from ladle.kernels.reference import model as model_reference

pytestmark = MARKS

BOUND = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative error of a sum: the rounding of the result, and in float32 that of every term."""

SIZES = [
    (1,),
    (1023,),  # one program with a tail
    (1024,),  # exactly one of those with three terms and more
    (3, 683),  # 2049: one more than a program of those with one or two terms
    (7, 5, 61),
]


def _expected(terms: list[tuple[float, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    parts = torch.stack([c * w.double() for c, w in terms])
    return parts.sum(0), parts.abs().sum(0)


@pytest.mark.parametrize("op", [module.merge_weights, model_reference.merge_weights], ids=["triton", "torch"])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 17])
def test_every_number_of_terms(op, count: int, generator: torch.Generator) -> None:
    shape = SIZES[int(torch.randint(len(SIZES), (1,), generator=generator))]
    terms = [
        (float(torch.randn((), generator=generator)), torch.randn(shape, generator=generator)) for _ in range(count)
    ]
    out = torch.full(shape, torch.nan)  # what it held before is not read
    assert op(out, terms) is out
    expected, scale = _expected(terms)
    assert ((out - expected).abs() <= BOUND[torch.float32] * scale).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
def test_sizes_and_pairs_of_dtypes(size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> None:
    for other in module.DTYPES:
        terms = [
            (1.75, torch.randn(size, generator=generator).to(other)),
            (-0.75, torch.randn(size, generator=generator).to(dtype)),
        ]
        out = torch.empty(size, dtype=dtype)
        module.merge_weights(out, terms)
        expected, scale = _expected(terms)
        assert ((out.double() - expected).abs() <= BOUND[dtype] * scale).all(), other


@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
def test_one_member_at_coefficient_one_comes_out_bit_for_bit(dtype: torch.dtype, generator: torch.Generator) -> None:
    weight = torch.randn(1500, generator=generator).to(dtype)
    assert torch.equal(module.merge_weights(torch.empty_like(weight), [(1.0, weight)]), weight)


def test_out_may_be_a_term(generator: torch.Generator) -> None:
    weight, other = torch.randn(2, 100, generator=generator)
    expected = 0.25 * weight.double() + 0.75 * other.double()
    module.merge_weights(weight, [(0.25, weight), (0.75, other)])
    assert (weight - expected).abs().max() < 1e-6


def test_what_is_not_finite_stays_where_it_is() -> None:
    first, second = torch.ones(10), torch.ones(10)
    first[3], second[5] = torch.inf, torch.nan
    out = module.merge_weights(torch.empty(10), [(0.5, first), (2.0, second)])
    assert out[3] == torch.inf and out[5].isnan() and (out[[0, 1, 2, 4, 6, 7, 8, 9]] == 2.5).all()


def test_nothing_to_merge() -> None:
    assert module.merge_weights(torch.empty(0, 4), [(1.0, torch.empty(0, 4))]).shape == (0, 4)


def test_what_cannot_be_merged_is_named() -> None:
    out = torch.empty(4, 4)
    with pytest.raises(ValueError, match="terms: none given"):
        module.merge_weights(out, [])
    with pytest.raises(ValueError, match=r"terms\[1\]: shape \[4\], but out has \[4, 4\]"):
        module.merge_weights(out, [(1.0, out), (1.0, out[0])])
    with pytest.raises(ValueError, match=r"terms\[0\]: dtype torch.int64"):
        module.merge_weights(out, [(1.0, torch.zeros(4, 4, dtype=torch.int64))])
    with pytest.raises(ValueError, match=r"terms\[0\]: strides \(1, 4\)"):
        module.merge_weights(out, [(1.0, out.T)])
