"""What is compiled before there are weights is what a model takes."""

from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from ladle.kernels import dispatch
from ladle.kernels.cpu import first_code
from ladle.kernels.cpu.arrays import LayerPass, Layers, PagedTokens
from ladle.kernels.cpu.tiled_product import TiledProduct, array

HIDDEN, DIM, ROWS, RANKS = 128, 64, 3, 5


def layers(dtype: torch.dtype, quantized: bool) -> Layers:
    def products(out: int) -> dispatch.Product:
        weight, shrink, expand = torch.randn(out, HIDDEN), torch.randn(RANKS, HIDDEN), torch.randn(out, RANKS)
        return dispatch.stack_products([TiledProduct(weight, None, shrink, expand, dtype, quantized, quantized)] * 2)

    four = [products(out) for out in (3 * HIDDEN, HIDDEN, 2 * HIDDEN, HIDDEN)]
    inputs = np.zeros(0, np.int16 if dtype == torch.bfloat16 else np.float32)
    return Layers(np.ones((2, 2, HIDDEN), np.float32), 1e-5, *four, HIDDEN, 0.1, np.zeros(2, np.int64), inputs)


def test_torch_agrees_about_the_processor() -> None:
    assert first_code.has_bfloat16() == dispatch.cpu_has_bfloat16()


@pytest.mark.parametrize("form", first_code.FORMS)
def test_what_is_compiled_is_what_a_model_takes(form: str) -> None:
    product, tried = first_code.trial(form)
    quantized, native = form == "int8", dispatch.cpu_has_bfloat16()
    dtype = torch.bfloat16 if native and not quantized else torch.float32
    turned, places = np.zeros((ROWS, DIM), np.float32), np.zeros(ROWS, np.int64)
    paged = PagedTokens(turned, turned, np.zeros((1, 4), np.int64), places, places, places)
    scale = np.zeros((1, ROWS, RANKS), np.float32)
    kv = np.zeros((2, 64, 2, 2, DIM), np.int16 if native else np.float32)
    vectors = np.zeros((2, 1, HIDDEN), np.float32)
    x, amounts = np.zeros((ROWS, HIDDEN), np.float32), np.zeros((ROWS, 1), np.float32)
    step = LayerPass(x, layers(dtype, quantized), (scale,) * 4, paged, kv, 16, 2, amounts, vectors)
    assert numba.typeof(step) == numba.typeof(tried)
    head = TiledProduct(torch.randn(50, HIDDEN), None, None, None, dtype, quantized, quantized)
    given = array(torch.zeros(ROWS, HIDDEN, dtype=dtype))
    out = array(torch.zeros(ROWS, 50, dtype=dtype))
    taken = head.product, scale[0], given, x, out, 2
    assert [numba.typeof(each) for each in taken] == [numba.typeof(each) for each in product]


def test_each_part_is_compiled_by_itself_and_what_is_done_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called: list[str] = []
    monkeypatch.setattr(first_code, "merged_product", lambda *taken: called.append("products"))
    monkeypatch.setattr(first_code, "run_layers", lambda step: called.append("layers"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(first_code, "KEPT", True)
    for count, part in enumerate(first_code.PARTS):
        assert not first_code.is_done("int8", part)
        first_code.compile_first("int8", part)
        assert called == list(first_code.PARTS[: count + 1])
        assert first_code.is_done("int8", part) and not first_code.is_done("bfloat16", part)
