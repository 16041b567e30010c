"""The compiled loops that a server's first answer goes through, compiled before there are weights.

``python -m ladle.kernels.cpu.first_code FORM PART`` does so in a process of its own, by taking one token through a
layer of nothing: what is compiled follows from the dtypes of the arrays, not from their sizes. torch is not imported.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np

from ladle.kernels.cpu.arrays import LayerPass, Layers, PagedTokens, Product
from ladle.kernels.cpu.compiling.compiler import KEPT, SOURCE
from ladle.kernels.cpu.decoder_stack import run_layers
from ladle.kernels.cpu.digits import has_digits
from ladle.kernels.cpu.merged_product import merged_product
from ladle.kernels.cpu.tiles import LANES, features, has_pairs

FORMS = ("bfloat16", "int8")
"""Of weights: those of a model in bfloat16, and the same quantised."""
PARTS = ("layers", "products")
"""What is compiled apart, the longer one first: all layers of a step, and a product alone."""
_SIZE, _SLOTS = 64, 16


def has_bfloat16() -> bool:
    """What ``packed_linear.cpu_has_bfloat16`` says, without torch."""
    return bool(features().get("avx512bf16") or features().get("amx-bf16"))


def is_done(form: str, part: str) -> bool:
    """Whether the loops of ``part`` for weights of ``form`` lie in the folder of compiled code, or none can."""
    return not KEPT or _mark(form, part).exists()


def compile_first(form: str, part: str) -> None:
    """Compile ``part``, one of ``PARTS``, for weights of ``form``, one of ``FORMS``, unless it is kept."""
    if form != "bfloat16" or has_pairs() or not has_bfloat16():  # else such a model is not held in tiles
        # Sizes do not matter for what is compiled, so the trial takes one token, one layer and one block.
        product, step = trial(form)
        if part == "products":
            merged_product(*product)
        else:
            run_layers(step)
    if KEPT:
        _mark(form, part).touch()


def trial(form: str) -> tuple[tuple[Any, ...], LayerPass]:
    """What ``merged_product`` and ``run_layers`` take for one token of a model of zeros."""
    # Dtypes as ``TiledProduct`` would choose them for such a model on this processor; they are all that the compiled
    # code follows from.
    in_pairs = form == "bfloat16" and has_bfloat16()
    held: Any = np.int16 if in_pairs else np.uint16
    weight: Any = held if form == "bfloat16" else np.uint8 if has_digits() else np.int8
    inputs = np.zeros(0, np.int16 if in_pairs else np.float32)
    kv = np.zeros((1, _SLOTS, 2, 1, _SIZE), np.int16 if has_bfloat16() else np.float32)
    qkv, out, gate_up, down = (_product(size, weight, held) for size in (3 * _SIZE, _SIZE, 2 * _SIZE, _SIZE))
    norms, one, none = np.ones((1, 2, _SIZE), np.float32), np.zeros(1, np.int64), np.zeros((1, 1, 0), np.float32)
    layers = Layers(norms, 1e-5, qkv, out, gate_up, down, _SIZE, 1.0, one, inputs)
    turned = np.zeros((1, _SIZE), np.float32)
    paged = PagedTokens(turned, turned, np.zeros((1, 1), np.int64), one, one, one)
    x, amounts, vectors = np.zeros((1, _SIZE), np.float32), none[0], np.zeros((1, 0, _SIZE), np.float32)
    head, y = Product(*(part[0] for part in _product(_SIZE, weight, held))), np.zeros((1, _SIZE), np.float32)
    given, made = np.zeros((1, _SIZE), inputs.dtype), np.zeros((1, _SIZE), inputs.dtype)
    step = LayerPass(x, layers, (none, none, none, none), paged, kv, _SLOTS, 1, amounts, vectors)
    return (head, amounts, given, y, made, 1), step


def _product(out: int, weight: Any, held: Any) -> Product:
    """A layer of zeros as ``tiled_product.stack`` gives it."""
    together, wide = _packed(weight)
    steps = np.zeros((1, 0 if weight == held else out), np.float32)
    rows = np.zeros((1, out // LANES, _SIZE // together, wide), weight)
    together, wide = _packed(held)
    shrink = np.zeros((1, 0, _SIZE // together, wide), held)
    tiles = np.zeros((1, 0, 0, 2 * LANES), np.int16)
    return Product(rows, steps, np.zeros((1, 0), np.float32), shrink, np.zeros((1, 0, out), np.uint16), tiles)


def _packed(dtype: Any) -> tuple[int, int]:
    """Inputs a step, and numbers a step."""
    together = {np.int16: 2, np.uint8: 4}.get(dtype, 1)
    return together, together * LANES


def _mark(form: str, part: str) -> Path:
    """A file that says that the loops are there: of this code, for this processor."""
    made_by = numba.__version__, metadata.version("llvmlite"), numba.config.CPU_NAME, numba.config.CPU_FEATURES
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    digest = hashlib.sha256(repr((SOURCE, made_by, processor, form, part)).encode()).hexdigest()
    return Path(numba.config.CACHE_DIR) / f"first-{digest[:16]}"


def _end_with_parent() -> None:
    """End when the process that began this one does: its end of the pipe closes."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    gc.disable()  # it ends within a minute
    threading.Thread(target=_end_with_parent, daemon=True).start()
    compile_first(*sys.argv[1:])
