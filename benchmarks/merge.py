"""A three-member full-weight merge against the memory floor and the naive sum of state dicts; interleaved.

The floor counts every byte that has to move once (base and members read, result written) at the speed that a plain copy
reaches on this machine in the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from ladle.merging.merges.streaming_merge import Scratch, merge_tensor

MEMBERS = 3
_SHAPES = [(49152, 576)] + 30 * [(960, 576), (576, 576), (3072, 576), (576, 1536)]
"""The matrices of a 135 M model."""


def _copy_bandwidth(source: torch.Tensor, target: torch.Tensor) -> float:
    """Bytes a second (read plus written) of one copy between preallocated tensors."""
    start = time.perf_counter()
    target.copy_(source)
    return 2 * source.nbytes / (time.perf_counter() - start)


def run(dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    """One row: medians over ``rounds`` of the streaming merge, the naive sum and the floor."""
    generator = torch.Generator().manual_seed(0)
    base = [torch.randn(shape, generator=generator).to(dtype) for shape in _SHAPES]
    members = [[(tensor + 0.01).to(dtype) for tensor in base] for _ in range(MEMBERS)]
    out = [torch.zeros_like(tensor) for tensor in base]
    coefficients = [1.75, -0.25, -0.75]  # they do not sum to 1, so the base is read as well
    scratch = Scratch()
    moved = (MEMBERS + 2) * sum(tensor.nbytes for tensor in base)
    probe = torch.ones(64 << 20)
    sink = torch.zeros_like(probe)
    times: dict[str, list[float]] = {"merge": [], "naive": [], "floor": []}
    for turn in range(rounds + 1):
        floor = moved / _copy_bandwidth(probe, sink)
        start = time.perf_counter()
        for index, target in enumerate(out):
            full = [(c, member[index]) for c, member in zip(coefficients, members, strict=True)]
            merge_tensor(target, base[index], full, scratch=scratch)
        merged = time.perf_counter() - start
        start = time.perf_counter()
        naive = [
            b + sum(c * (member[index] - b) for c, member in zip(coefficients, members, strict=True))
            for index, b in enumerate(base)
        ]
        summed = time.perf_counter() - start
        del naive
        if turn:
            times["merge"].append(merged)
            times["naive"].append(summed)
            times["floor"].append(floor)
    share = [floor / merged for floor, merged in zip(times["floor"], times["merge"], strict=True)]
    low, _, high = statistics.quantiles(share, n=4)
    yield {
        "dtype": str(dtype).removeprefix("torch."),
        "members": MEMBERS,
        "rounds": rounds,
        "merge_ms": round(1e3 * statistics.median(times["merge"]), 1),
        "naive_ms": round(1e3 * statistics.median(times["naive"]), 1),
        "floor_ms": round(1e3 * statistics.median(times["floor"]), 1),
        "GB_per_s": round(moved / statistics.median(times["merge"]) / 1e9, 2),
        "share_of_floor": round(statistics.median(share), 3),
        "share_quartiles": f"{low:.2f}-{high:.2f}",
    }
