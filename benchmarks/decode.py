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
from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family import Family
from ladle.server.engine.config import EngineConfig
from ladle.server.engine.engine import Engine
from ladle.server.engine.request import GenerationRequest
from ladle.server.engine.sampling import SamplingParams

PROMPT_TOKENS = 64
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


class _Ladle:
    """The engine, driven step by step on this thread."""

    def __init__(self, family: Family, dtype: str) -> None:
        self.engine = Engine(family, EngineConfig(dtype=dtype, max_sequences=64, prefix_cache=False))
        self._family = family
        self._serial = 0

    def burst(self, batch: int, steps: int, steering: Callable[[int], Steering]) -> Iterator[float]:
        engine = self.engine
        ids = []
        for row in range(batch):
            self._serial += 1
            ids.append(f"decode-{self._serial}")
            prompt = tuple(torch.randint(0, engine.vocabulary, (PROMPT_TOKENS,)).tolist())
            sampling = SamplingParams(max_tokens=4 * steps + 64, temperature=0.0, ignore_eos=True)
            plan = resolve(self._family, steering(row))
            engine.submit(GenerationRequest(ids[-1], prompt, plan, sampling), lambda outputs: None)
        engine.step()
        while any(not sequence.output for sequence in engine.scheduler.running) or engine.scheduler.waiting:
            engine.step()
        for _ in range(steps):
            start = time.perf_counter()
            engine.step()
            yield time.perf_counter() - start
        for request_id in ids:
            engine.cancel(request_id)
        engine.step()


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
    peer, ladle, probe = _Peer(family, torch_dtype), _Ladle(family, dtype), BandwidthProbe()
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
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = weight_bytes / bandwidth

    def ratio(one: str, other: str) -> tuple[float, str]:
        paired = [a / b for a, b in zip(times[one], times[other], strict=True)]
        low, _, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else (paired[0],) * 3
        return round(statistics.median(paired), 3), f"{low:.2f}-{high:.2f}"

    to_peer, to_peer_range = ratio("base", "transformers")
    to_base, to_base_range = ratio("preferences", "base")
    return {
        "dtype": dtype,
        "batch": batch,
        "rounds": len(times["base"]),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in medians.items()},
        "base_over_transformers": to_peer,
        "base_over_transformers_quartiles": to_peer_range,
        "preferences_over_base": to_base,
        "preferences_over_base_quartiles": to_base_range,
        "tokens_per_s": round(batch / medians["preferences"], 1),
        "read_GB_per_s": round(weight_bytes / medians["base"] / 1e9, 2),
        "bandwidth_GB_per_s": round(bandwidth / 1e9, 2),
        "floor_ms": round(1e3 * floor, 2),
        "base_over_floor": round(medians["base"] / floor, 2),
    }
