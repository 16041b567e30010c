"""What the best of several costs: answers that are ranked, and answers that are searched, against as many that are only
written; whole requests, interleaved."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ladle.benchmarks.paired import over_plain
from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams

PROMPT_TOKENS = 64
QUESTION_TOKENS = 24
TOKENS = 48
ANSWERS = 8
BURST = 3
METHOD = "bone_soup"
RANKINGS: Mapping[str, Any] = {
    "likelihood": "likelihood",
    "explicit": "explicit",
    "implicit": "implicit",
    "router": "router",
    "ask": {"ask": "Is this answer kind?"},
}
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "explicit_4x16": {"by": "explicit", "until": 16, "draws": 4},
    "explicit_4x16_beam_2": {"by": "explicit", "until": 16, "draws": 4, "beam": 2},
    "likelihood_4x16": {"by": "likelihood", "until": 16, "draws": 4},
    "cntp": {"by": "likelihood", "until": "punctuation", "draws": {"entropy": [0.01, 1.5], "most": 10}},
}


class _Requests:
    """An engine that serves whole requests, on this thread. ``spent``: tokens that searches drew, by side."""

    def __init__(self, family: Family, dtype: str) -> None:
        self._family = family
        self._engine = Engine(family, EngineConfig(dtype=dtype, max_sequences=128))
        self._even = dict.fromkeys(family.objectives, 1.0)
        self._random = random.Random(0)
        self.spent: dict[str, list[int]] = {}

    def allows(self, **steering: Any) -> bool:
        """Whether the family has what this asks for."""
        try:
            self._resolved(steering)
        except InputError:
            return False
        return True

    def burst(self, name: str, batch: int, answers: int, **steering: Any) -> Iterator[float]:
        """Seconds from the submission of ``batch`` requests, each with so many answers, to their last token."""
        for _ in range(BURST):
            start = time.perf_counter()
            for request in self._made(batch, answers, steering):
                self._engine.submit(request, lambda outputs: self._saw(name, outputs))
            while self._engine.step():
                pass
            yield time.perf_counter() - start

    def _made(self, batch: int, answers: int, steering: Mapping[str, Any]) -> Iterator[GenerationRequest]:
        plan = self._resolved(steering)
        draw = self._random.randrange
        for _ in range(batch):
            prompt = tuple(draw(self._engine.vocabulary) for _ in range(PROMPT_TOKENS))
            views = {view: prompt[:QUESTION_TOKENS] if view.asks else prompt for view in plan.views}
            for _ in range(answers):
                name, seed = f"several-{draw(1 << 60)}", draw(1 << 60)
                sampling = SamplingParams(max_tokens=TOKENS, seed=seed, ignore_eos=True)
                yield GenerationRequest(name, prompt, plan, sampling, views)

    def _resolved(self, steering: Mapping[str, Any]) -> Any:
        return resolve(self._family, Steering.parse({"method": METHOD, "preference": self._even, **steering}))

    def _saw(self, name: str, outputs: Iterable[StepOutput]) -> None:
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
            if output.spent is not None:
                self.spent.setdefault(name, []).append(output.spent.tokens)


def rank(family: Family, dtype: str, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """A row a number of requests: milliseconds until all of their answers are there, ranked by each thing that the
    family has, and the ratio to as many that are not ranked, paired by round."""
    side = _Requests(family, dtype)
    asked = {name: {"rank": {"by": by}} for name, by in RANKINGS.items() if side.allows(rank={"by": by})}
    for batch in batches:
        yield {"batch": batch, "answers": ANSWERS, **_row(side, dtype, batch, ANSWERS, asked, rounds)}


def search(family: Family, dtype: str, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """A row a number of requests: milliseconds until their answers are there, searched in several ways, the ratio to
    answers that are drawn once, paired by round, and how many tokens were drawn for each that is kept."""
    side = _Requests(family, dtype)
    asked = {name: {"search": how} for name, how in SEARCHES.items() if side.allows(search=how)}
    for batch in batches:
        side.spent.clear()
        row = _row(side, dtype, batch, 1, asked, rounds)
        kept = batch * TOKENS * BURST * (rounds + 1)
        yield {
            "batch": batch,
            **row,
            **{f"{name}_drawn": round(sum(own) / kept, 2) for name, own in side.spent.items()},
        }


def _row(
    side: _Requests, dtype: str, batch: int, answers: int, asked: Mapping[str, Mapping[str, Any]], rounds: int
) -> dict[str, object]:
    sides: dict[str, Callable[[], Iterator[float]]] = {"plain": lambda: side.burst("plain", batch, answers)}
    for name, steering in asked.items():
        sides[name] = lambda name=name, own=steering: side.burst(name, batch, answers, **own)  # type: ignore[misc]
    return {"tokens": TOKENS, "dtype": dtype, **over_plain(sides, rounds)}
