"""Up to how many rows a tiled product is the quickest one: found by trying, once a process.

Tried only where the library may multiply in a unit that tiles do not use. Elsewhere both take the same instructions, so
that what else the machine does would decide the race: from process to process another form, and with it another text
for the same seed.
"""

from __future__ import annotations

import functools
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ladle.kernels.cpu.matrix_unit import has_matrix_unit
from ladle.kernels.cpu.packed_linear import PackedLinear
from ladle.kernels.cpu.tiled_product import TiledProduct, can_hold

LARGEST = 1 << 29
"""Weights of a model up to which two copies of them are held, where a processor multiplies many rows in another way."""
_SIZE = 1024
_WEIGHTS = 12
"""Different ones: a model's weights come from memory at every step, and do not lie in a processor's caches."""
_COUNTS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
_ROUNDS = 7
_AS_QUICK = 1.4
"""A second copy of the weights has to be worth it."""
_TRIES = 3
_PAUSE_S = 0.05
"""Between tries, until threads that wait for more work have gone to sleep."""


def tiled_rows(dtype: torch.dtype, elements: int) -> int:
    """Rows up to which a model with ``elements`` weights takes tiles for activations in ``dtype``; 0: none at all,
    ``sys.maxsize``: all."""
    if not can_hold(torch.zeros(0, 0), dtype):
        return 0
    limit = _quickest(dtype)
    return limit if limit == sys.maxsize or elements <= LARGEST else 0


def has_other_unit(dtype: torch.dtype) -> bool:
    """Whether a library's product of activations in ``dtype`` may run in a unit that tiles do not reach."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True  # Accelerate's, or one that nothing here can ask for
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return dtype == torch.bfloat16 and bool(capability.get("amx_bf16")) and not has_matrix_unit()


@functools.cache
def _quickest(dtype: torch.dtype) -> int:
    if not has_other_unit(dtype):
        return sys.maxsize
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(_WEIGHTS)]
    tiled = [TiledProduct(weight, None, None, None, dtype) for weight in weights]
    packed = [PackedLinear(weight, None, dtype) for weight in weights]
    # From the largest number of rows down: the first at which tiles keep up is the limit, and all rows if that is the
    # largest one tried.
    for index, count in enumerate(_COUNTS):
        x = torch.randn(count, _SIZE, generator=generator).to(dtype)
        if any(_as_quick(x, tiled, packed) for _ in range(_TRIES)):
            return sys.maxsize if index == 0 else count
    return 0


def _as_quick(x: Tensor, tiled: list[TiledProduct], packed: list[PackedLinear]) -> bool:
    time.sleep(_PAUSE_S)
    # Both forms over the same weights, one after the other and not in turns.
    tile = seconds(lambda: [product(x, None) for product in tiled])
    return tile <= _AS_QUICK * seconds(lambda: [product(x) for product in packed])


def seconds(work: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """How long the quickest of some calls in a row takes: what else the machine does only adds, and
    the threads of one form get in the way of the other's when they take turns."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
