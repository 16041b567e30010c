"""What it costs that a request's tokens depend on that request alone: steps and prompts, with and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

import torch

from ladle.benchmarks.engine_side import EngineSide
from ladle.benchmarks.paired import over_plain
from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.kernels import dispatch
from ladle.kernels.dispatch import PackedLinear
from ladle.merging.family.family import Family
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sampling_params import SamplingParams

BURST = 12
PROMPT = 512
PLAIN = Steering(method="base")


def run(family: Family, dtype: str, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """A row per batch size and one for a prompt of 512 tokens, milliseconds and ratios paired by round.

    ``reproducible``: as this processor needs it. ``pieces``: where no layers are compiled and the library's products do
    not keep their rows apart, so that every product is computed 32 rows at a time.
    """
    sides = {"plain": EngineSide(family, dtype), "reproducible": EngineSide(family, dtype, reproducible=True)}
    with (
        patch.object(dispatch, "tiled_rows", lambda *model: 0),
        patch.object(PackedLinear, "_rows_stand_alone", lambda self, dtype: False),
    ):
        sides["pieces"] = EngineSide(family, dtype, reproducible=True)
    for batch in batches:
        bursts: dict[str, Callable[[], Iterator[float]]] = {
            name: lambda side=side, batch=batch: side.burst(batch, BURST, lambda row: PLAIN)  # type: ignore[misc]
            for name, side in sides.items()
        }
        yield {"what": f"decode step, batch {batch}", "dtype": dtype, **over_plain(bursts, rounds)}
    prompts: dict[str, Callable[[], Iterator[float]]] = {
        name: lambda side=side: _prompt(side, family)  # type: ignore[misc]
        for name, side in sides.items()
    }
    yield {"what": f"prompt of {PROMPT} tokens", "dtype": dtype, **over_plain(prompts, rounds)}


def _prompt(side: EngineSide, family: Family) -> Iterator[float]:
    """Seconds from a prompt to its first token, three times."""
    engine = side.engine
    for turn in range(3):
        ids = tuple(torch.randint(0, engine.vocabulary, (PROMPT,)).tolist())
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        request = GenerationRequest(f"prompt-{turn}", ids, resolve(family, PLAIN), sampling)
        start = time.perf_counter()
        engine.submit(request, lambda outputs: None)
        while engine.step():
            pass
        yield time.perf_counter() - start
