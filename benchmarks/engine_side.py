"""The engine as one side of a comparison of decode steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import Family
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.grammars.grammar import Grammar
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sampling_params import SamplingParams

PROMPT_TOKENS = 64


class EngineSide:
    """The engine, driven step by step on this thread. ``options``: of its config."""

    def __init__(self, family: Family, dtype: str, **options: Any) -> None:
        options = {"max_sequences": 64, **options}
        self.most: int = options["max_sequences"]
        self.engine = Engine(family, EngineConfig(dtype=dtype, prefix_cache=False, **options))
        self._family = family
        self._serial = 0

    def burst(
        self, batch: int, steps: int, steering: Callable[[int], Steering], grammar: Grammar | None = None
    ) -> Iterator[float]:
        engine = self.engine
        ids = []
        for row in range(batch):
            self._serial += 1
            ids.append(f"decode-{self._serial}")
            prompt = tuple(torch.randint(0, engine.vocabulary, (PROMPT_TOKENS,)).tolist())
            sampling = SamplingParams(max_tokens=4 * steps + 64, temperature=0.0, ignore_eos=True)
            plan = resolve(self._family, steering(row))
            views = dict.fromkeys(plan.views, prompt)
            engine.submit(GenerationRequest(ids[-1], prompt, plan, sampling, views, grammar), lambda outputs: None)
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
