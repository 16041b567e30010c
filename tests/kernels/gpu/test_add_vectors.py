"""add_vectors against float64, and against plain torch bit for bit."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not on this platform")

from kernel_device import DEVICE, MARKS

from ladle.kernels.gpu import add_vectors as module
from ladle.kernels.reference import model as model_reference

pytestmark = MARKS

BOUND = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative error of a sum: the rounding of the result, and in float32 that of every term."""
SIZES = [(1, 1, 1), (3, 2, 33), (5, 4, 1024), (2, 3, 1025), (4, 1, 2050)]
"""Rows, vectors, numbers of a row: less than one program's, exactly as many, one more."""


def _case(
    size: tuple[int, int, int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, count, hidden = size
    x = torch.randn(rows, hidden, generator=generator).to(dtype)
    amounts = torch.randn(rows, count, generator=generator) * (torch.rand(rows, count, generator=generator) < 0.6)
    return x, amounts, torch.randn(count, hidden, generator=generator)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
def test_it_is_the_sum(size: tuple[int, int, int], dtype: torch.dtype, generator: torch.Generator) -> None:
    x, amounts, vectors = _case(size, dtype, generator)
    before = x.clone()
    found, plain = module.add_vectors(x, amounts, vectors), model_reference.add_vectors(x, amounts, vectors)
    expected = x.double() + amounts.double() @ vectors.double()
    scale = x.double().abs() + amounts.double().abs() @ vectors.double().abs()
    assert found.dtype == dtype and ((found.double() - expected).abs() <= BOUND[dtype] * scale).all()
    # The interpreter cuts what it writes as bfloat16 where a GPU rounds it.
    assert torch.equal(found, plain) or (dtype == torch.bfloat16 and DEVICE.type == "cpu")
    assert torch.equal(x, before)


def test_a_row_without_stays_as_it_is(generator: torch.Generator) -> None:
    x, amounts, vectors = _case((4, 3, 70), torch.bfloat16, generator)
    amounts[1] = 0
    vectors[2] = torch.nan
    amounts[0, 2] = 1
    amounts[1:, 2] = 0
    found = module.add_vectors(x, amounts, vectors)
    assert torch.equal(found[1], x[1]) and found[0].isnan().all() and found[1:].isfinite().all()


def test_rows_that_lie_apart(generator: torch.Generator) -> None:
    x, amounts, vectors = _case((4, 3, 70), torch.float32, generator)
    wide = torch.cat((amounts, x, vectors.sum(0).expand(4, -1)), dim=1)
    directions = torch.stack((vectors, vectors + 1), dim=1)[:, 0]
    found = module.add_vectors(wide[:, 3:73], wide[:, :3], directions)
    assert torch.equal(found, module.add_vectors(x, amounts, vectors))
    assert module.add_vectors(x[:0], amounts[:0], vectors).shape == (0, 70)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_plain_torch_leaves_nothing_to_the_batch(dtype: torch.dtype, generator: torch.Generator) -> None:
    x, amounts, vectors = _case((7, 3, 130), dtype, generator)
    together = model_reference.add_vectors(x, amounts, vectors)
    for row in range(7):
        single = model_reference.add_vectors(x[row : row + 1], amounts[row : row + 1], vectors)
        assert torch.equal(single[0], together[row])
    assert together.dtype == dtype


def test_what_does_not_fit_is_refused(generator: torch.Generator) -> None:
    x, amounts, vectors = _case((4, 3, 70), torch.float32, generator)
    for arguments, complaint in (
        ((x.double(), amounts, vectors), "x: dtype"),
        ((x, amounts.double(), vectors), "amounts: dtype"),
        ((x, amounts, vectors.half()), "vectors: dtype"),
        ((x, amounts[:3], vectors), r"amounts: shape \[3, 3\]"),
        ((x, amounts, vectors[:, :69]), r"vectors: shape \[3, 69\]"),
        ((x.T.contiguous().T, amounts, vectors), "x: strides"),
    ):
        with pytest.raises(ValueError, match=complaint):
            module.add_vectors(*arguments)
