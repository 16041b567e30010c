"""A decode step: transformers, Ladle on the plain base, Ladle with another preference a row; interleaved.

Ladle's side is the whole engine step (layout, forward, sampling, detokenisation, delivery), transformers' side its
forward with a DynamicCache and an argmax. All sides of one round run within seconds of each other with a bandwidth
probe beside them, because the memory bandwidth of a shared machine drifts; ratios are taken round by round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from ladle.benchmarks.bandwidth import BandwidthProbe
from ladle.benchmarks.engine_side import PROMPT_TOKENS, EngineSide
from ladle.benchmarks.paired import medians, ratio
from ladle.guidance.plan import Steering
from ladle.merging.family.family import Family

BURST = 6
_PREFERENCES = 16


class _Peer:
    """transformers' own forward, one token a step for ``batch`` sequences."""

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(family.base_path, dtype=dtype, local_files_only=True).eval()
        self._vocabulary = self._model.config.get_text_config().vocab_size

    @torch.inference_mode()
    def burst(self, batch: int, steps: int) -> Iterator[float]:
        cache = DynamicCache(config=self._model.config)
        ids = torch.randint(0, self._vocabulary, (batch, PROMPT_TOKENS))
        ids = self._model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        for _ in range(steps):
            start = time.perf_counter()
            ids = self._model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
            yield time.perf_counter() - start


def preferences(family: Family) -> Callable[[int], Steering]:
    """Sixteen different preferences over the family's objectives, by row."""
    generator = np.random.default_rng(0)
    drawn = generator.dirichlet(np.ones(len(family.objectives)), size=_PREFERENCES)

    def steering(row: int) -> Steering:
        weights = drawn[row % _PREFERENCES]
        return Steering(preference=dict(zip(family.objectives, map(float, weights), strict=True)))

    return steering


def run(family: Family, dtype: str, batches: list[int], rounds: int) -> Iterator[dict[str, object]]:
    """One row a batch size: median milliseconds, paired ratios (median of rounds and their quartiles), the floor."""
    torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    peer, ladle, probe = _Peer(family, torch_dtype), EngineSide(family, dtype), BandwidthProbe()
    weight_bytes = sum(p.numel() for p in peer._model.parameters()) * torch_dtype.itemsize
    base = Steering(method="base")
    mixed = preferences(family)
    for batch in batches:
        sides: dict[str, Callable[[], Iterator[float]]] = {
            "transformers": lambda batch=batch: peer.burst(batch, BURST),  # type: ignore[misc]
            "base": lambda batch=batch: ladle.burst(batch, BURST, lambda row: base),  # type: ignore[misc]
            "preferences": lambda batch=batch: ladle.burst(batch, BURST, mixed),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        bandwidths = []
        for turn in range(rounds + 1):
            for name, side in sides.items():
                bandwidths.append(probe.read())
                median = statistics.median(side())
                if turn:  # the first round warms up
                    times[name].append(median)
        yield _row(batch, dtype, times, weight_bytes, statistics.median(bandwidths))


def _row(
    batch: int, dtype: str, times: dict[str, list[float]], weight_bytes: int, bandwidth: float
) -> dict[str, object]:
    typical = medians(times)
    floor = weight_bytes / bandwidth
    to_peer, to_peer_range = ratio(times["base"], times["transformers"])
    to_base, to_base_range = ratio(times["preferences"], times["base"])
    return {
        "dtype": dtype,
        "batch": batch,
        "rounds": len(times["base"]),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in typical.items()},
        "base_over_transformers": to_peer,
        "base_over_transformers_quartiles": to_peer_range,
        "preferences_over_base": to_base,
        "preferences_over_base_quartiles": to_base_range,
        "tokens_per_s": round(batch / typical["preferences"], 1),
        "read_GB_per_s": round(weight_bytes / typical["base"] / 1e9, 2),
        "bandwidth_GB_per_s": round(bandwidth / 1e9, 2),
        "floor_ms": round(1e3 * floor, 2),
        "base_over_floor": round(typical["base"] / floor, 2),
    }
