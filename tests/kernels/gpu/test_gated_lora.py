"""gated_lora against float64."""

import pytest
import torch
from kernel_device import MARKS
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not on this platform")

from ladle.kernels.gpu import gated_lora as module
from ladle.kernels.reference import model as model_reference
from ladle.kernels.spans import OUTPUTS, spans_of

pytestmark = MARKS

BOUND = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Error of an element against the sum of the magnitudes of its terms: rounding of the operands, of what is scaled
between the products (once a rank column), and of the result."""

SHAPES = [  # rows, inner, outputs, ranks
    (1, 64, 64, 4),  # one row, one block of everything
    (16, 100, 70, 16),  # a full tile of rows, tails elsewhere
    (17, 513, 65, 17),  # one more than a tile of each; a second part of one element
    (3, 1025, 33, 5),  # three parts
    (65, 48, 130, 256),  # a second tile of high ones; the largest rank
    (5, 40, 24, 3 * 16 + 40),  # members of different ranks, summed
]


def _inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    rows, inner, outputs, ranks = shape
    sizes = ((rows, outputs), (rows, inner), (ranks, inner), (rows, ranks), (outputs, ranks))
    out, x, shrink, scale, expand = (torch.randn(size, generator=generator) for size in sizes)
    scale[:, torch.rand(ranks, generator=generator) < 0.3] = 0
    return [out.to(dtype), x.to(dtype), shrink.to(dtype), scale, expand.to(dtype)]


def _expected(out: Tensor, x: Tensor, shrink: Tensor, scale: Tensor, expand: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the magnitudes that it was summed of."""
    parts = [part.double() for part in (out, x, shrink, scale, expand)]

    def sum_up(out: Tensor, x: Tensor, shrink: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
        return out + ((x @ shrink.T) * scale) @ expand.T

    return sum_up(*parts), sum_up(*(part.abs() for part in parts))


def _assert_close(got: Tensor, expected: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    value, scale = expected
    assert ((got.double() - value).abs() <= BOUND[dtype] * scale).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int, int], generator: torch.Generator) -> None:
    inputs = _inputs(shape, torch.float32, generator)
    expected = _expected(*inputs)
    in_torch = model_reference.gated_lora(inputs[0].clone(), *inputs[1:])
    out = module.gated_lora(*inputs)
    assert out is inputs[0]
    _assert_close(out, expected, torch.float32)
    _assert_close(in_torch, expected, torch.float32)


@pytest.mark.parametrize("ranks", [4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ranks_in_half_precision(ranks: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    inputs = _inputs((9, 72, 48, ranks), dtype, generator)
    expected = _expected(*inputs)
    _assert_close(module.gated_lora(*inputs), expected, dtype)


@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
def test_onto_a_product_that_has_shrunk_already(dtype: torch.dtype, generator: torch.Generator) -> None:
    """As gated layers have it: one product, whose last columns are the shrunk ones; neither part is contiguous."""
    out, x, shrink, scale, expand = _inputs((19, 72, 100, 20), dtype, generator)
    product = torch.cat((out, (x.double() @ shrink.double().T).to(dtype)), dim=1)
    expected = _expected(out, product[:, 100:], torch.eye(20), scale, expand)
    before = product[:, 100:].clone()
    module.expand_gated(product[:, :100], product[:, 100:], scale, expand)
    _assert_close(product[:, :100], expected, dtype)
    assert torch.equal(product[:, 100:], before)


@pytest.mark.parametrize("outputs", [(100, 20, 24), (64, 64), (3, 130), (200,)], ids=str)
@pytest.mark.parametrize("rank", [5, 16, 40])
def test_stacked_layers_are_read_block_by_block(
    outputs: tuple[int, ...], rank: int, generator: torch.Generator
) -> None:
    """Layers that read the same input lie side by side, each with rank columns of its own."""
    total, ranks = sum(outputs), rank * len(outputs)
    out, _, _, scale, expand = _inputs((3, 8, total, ranks), torch.float32, generator)
    shrunk = torch.randn(3, ranks, generator=generator)
    blocks, start = [], 0
    for layer, rows in enumerate(outputs):
        blocks.append((start, start + rows, layer * rank, (layer + 1) * rank))
        start += rows
    inside = torch.zeros(total, ranks, dtype=torch.bool)
    for first, last, begin, end in blocks:
        inside[first:last, begin:end] = True
    expand[~inside] = 0
    expected = _expected(out, shrunk, torch.eye(ranks), scale, expand)
    spans = spans_of(blocks, total, out.device)
    # Tiles that no other layer shares leave alone what is beyond their own columns.
    for tile, (begin, end) in enumerate(spans.tolist()):
        rows = slice(tile * OUTPUTS, (tile + 1) * OUTPUTS)
        expand[rows, :begin] = torch.nan
        expand[rows, end:] = torch.nan
    _assert_close(module.expand_gated(out, shrunk, scale, expand, spans), expected, torch.float32)


def test_a_tile_of_no_layer_with_factors_stays_as_it_is(generator: torch.Generator) -> None:
    out, _, _, scale, expand = _inputs((3, 8, 128, 16), torch.float32, generator)
    before = out.clone()
    spans = spans_of([(0, 64, 0, 16), (64, 128, 16, 16)], 128, out.device)
    module.expand_gated(out, torch.ones(3, 16), scale, expand, spans)
    assert torch.equal(out[:, 64:], before[:, 64:]) and not torch.equal(out[:, :64], before[:, :64])


def test_rows_apart(generator: torch.Generator) -> None:
    """Every matrix is a part of a wider one: no row follows the one before."""
    inputs = _inputs((4, 30, 20, 12), torch.float32, generator)
    wide = [torch.nn.functional.pad(part, (3, 5), value=torch.nan)[:, 3:-5] for part in inputs]
    assert not any(part.is_contiguous() for part in wide)
    _assert_close(module.gated_lora(*wide), _expected(*inputs), torch.float32)


def test_a_row_does_not_depend_on_the_others(generator: torch.Generator) -> None:
    out, x, shrink, scale, expand = _inputs((6, 600, 80, 40), torch.float32, generator)
    alone = module.gated_lora(out[:1].clone(), x[:1], shrink, scale[:1], expand)
    assert torch.equal(module.gated_lora(out.clone(), x, shrink, scale, expand)[:1], alone)


def test_a_member_at_zero_adds_nothing_whatever_it_gave(generator: torch.Generator) -> None:
    """What a product overflowed to, times 0, would be NaN."""
    out, x, _, scale, expand = _inputs((3, 48, 16, 48), torch.float32, generator)
    scale[:, 20:] = 0
    x[:, 20:] = torch.inf
    expected = _expected(out, x[:, :20], torch.eye(20), scale[:, :20], expand[:, :20])
    _assert_close(module.expand_gated(out, x, scale, expand), expected, torch.float32)


@pytest.mark.parametrize("shape", [(0, 8, 8, 8), (3, 8, 8, 0), (3, 8, 0, 8)], ids=str)
def test_nothing_to_add(shape: tuple[int, int, int, int], generator: torch.Generator) -> None:
    inputs = _inputs(shape, torch.float32, generator)
    before = inputs[0].clone()
    assert torch.equal(module.gated_lora(*inputs), before)


def test_what_does_not_fit_is_named(generator: torch.Generator) -> None:
    out, x, shrink, scale, expand = _inputs((3, 8, 8, 4), torch.float32, generator)
    with pytest.raises(ValueError, match=r"scale: shape \[3, 3\]; \[3, 4\] follows"):
        module.gated_lora(out, x, shrink, scale[:, :3].contiguous(), expand)
    with pytest.raises(ValueError, match="x: dtype torch.float16; torch.float32 is needed"):
        module.gated_lora(out, x.half(), shrink, scale, expand)
    with pytest.raises(ValueError, match=r"expand: strides \(1, 8\)"):
        module.gated_lora(out, x, shrink, scale, expand.T.contiguous().T)
    with pytest.raises(ValueError, match=r"spans: torch.int32 \[2, 2\]; int32 of 64 outputs a row"):
        module.expand_gated(out, x[:, :4], scale, expand, torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="out: dtype torch.float64; float32, bfloat16 or float16 is needed"):
        module.expand_gated(out.double(), x[:, :4], scale, expand)
