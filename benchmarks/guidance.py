"""Guided decode steps against plain ones, and against a loop of sequential transformers forwards; interleaved.

The loop is how research code guides: one model after the other, each with its own weights and KV cache, scores added in
Python. Its models hold what Ladle's sources compute from one set of weights. The explicit loop asks the value model
about every candidate as a batch over a copy of its cache.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from ladle.benchmarks.engine_side import PROMPT_TOKENS, EngineSide
from ladle.benchmarks.paired import interleave, medians, ratio
from ladle.guidance.plan import Plan, Source, Steering
from ladle.guidance.registry import available, resolve
from ladle.merging.family.family import Family
from ladle.merging.merges.streaming_merge import Merge

BURST = 6
CANDIDATES = 20
MIXED_BATCH = 16


def settings(family: Family) -> dict[str, Steering]:
    """What is measured, by name, as far as the family has the members; the first is plain decoding."""
    preference = {name: 1.0 / len(family.objectives) for name in family.objectives}
    wanted: dict[str, Steering] = {
        "base": Steering(method="base"),
        "bone_soup": Steering(method="bone_soup", preference=preference),
        "mage implicit merged": Steering(method="mage", preference=preference, value="implicit"),
        "mage implicit ensemble": Steering(method="mage", preference=preference, value="implicit", combine="ensemble"),
        "mage explicit merged": Steering(
            method="mage", preference=preference, value="explicit", candidates=CANDIDATES, combine="merged"
        ),
        "mage explicit ensemble": Steering(
            method="mage", preference=preference, value="explicit", candidates=CANDIDATES, combine="ensemble"
        ),
        "mage both merged": Steering(
            method="mage", preference=preference, value="both", candidates=CANDIDATES, combine="merged"
        ),
        "mod": Steering(method="mod", preference=preference),
        "cfg": Steering(method="cfg"),
    }
    ready = {name for name, (usable, _) in available(family).items() if usable}
    kinds = {value.kind for value in family.values}
    return {
        name: steering
        for name, steering in wanted.items()
        if steering.method in ready
        and (
            steering.value is None
            or kinds >= ({"implicit", "explicit"} if steering.value == "both" else {steering.value})
        )
    }


class _Loop:
    """One transformers model a source, forwarded one after the other."""

    def __init__(self, family: Family, plan: Plan, dtype: torch.dtype) -> None:
        self._plan = plan
        merge = Merge.of(family)
        self._parts = [(source, self._model(family, merge, source, dtype)) for source in plan.sources]
        self._heads = {
            source: sum(share * family.heads[name].weight for name, share in source.head)
            for source in plan.sources
            if source.head
        }
        self._vocabulary = self._parts[0][1].config.get_text_config().vocab_size

    @staticmethod
    def _model(family: Family, merge: Merge, source: Source, dtype: torch.dtype) -> Any:
        model = AutoModelForCausalLM.from_pretrained(family.base_path, dtype=dtype, local_files_only=True).eval()
        state = dict(merge.tensors(dict(source.coefficients), dtype))
        model.load_state_dict(state, strict=False)
        return model

    @torch.inference_mode()
    def burst(self, steps: int) -> Iterator[float]:
        ids = torch.randint(0, self._vocabulary, (1, PROMPT_TOKENS))
        caches = [DynamicCache(config=model.config) for _, model in self._parts]
        ids = self._step(ids, caches)
        for _ in range(steps):
            start = time.perf_counter()
            ids = self._step(ids, caches)
            yield time.perf_counter() - start

    def _step(self, ids: Tensor, caches: list[Any]) -> Tensor:
        scores: Tensor | None = None
        first: Tensor | None = None
        for (source, model), cache in zip(self._parts, caches, strict=True):
            if source.head:
                continue
            logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
            first = logits if first is None else first
            part = source.weight * torch.log_softmax(logits, dim=-1)
            scores = part if scores is None else scores + part
        assert scores is not None and first is not None
        if self._plan.scorer is not None:
            top = first.topk(self._plan.scorer.candidates).indices[0]
            for (source, model), cache in zip(self._parts, caches, strict=True):
                if source.head:
                    model.model(input_ids=ids, past_key_values=cache)
                    forked = copy.deepcopy(cache)
                    forked.batch_repeat_interleave(top.shape[0])
                    states = model.model(input_ids=top[:, None], past_key_values=forked).last_hidden_state[:, -1]
                    values = states.float() @ self._heads[source]
                    values = values - values.mean()
                    scores[0, top] += self._plan.scorer.strength * source.weight * values
        return scores.argmax(-1, keepdim=True)


def run(family: Family, dtype: str, batches: Sequence[int], rounds: int, loops: bool) -> Iterator[dict[str, object]]:
    """A row per batch size and setting: milliseconds per step, and the ratios to plain decoding of as many requests, to
    plain decoding of as many rows as there are sources in all, and at batch 1 to the loop, paired by round; then
    sixteen requests of all settings in turn against sixteen plain ones."""
    torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    ladle = EngineSide(family, dtype)
    wanted = settings(family)

    def bursts(batch: int, chosen: Sequence[Steering]) -> Callable[[], Iterator[float]]:
        return lambda: ladle.burst(batch, BURST, lambda row: chosen[row % len(chosen)])

    plain = [wanted["base"]]
    for batch in batches:
        for name, steering in wanted.items():
            plan = resolve(family, steering)
            sources = batch * len(plan.sources)
            sides = {"plain": bursts(batch, plain), "guided": bursts(batch, [steering])}
            if batch < sources <= ladle.most:
                sides["rows"] = bursts(sources, plain)
            if loops and batch == 1 and name in ("base", "mage implicit merged", "mage explicit merged"):
                loop = _Loop(family, plan, torch_dtype)
                sides["loop"] = lambda loop=loop: loop.burst(BURST)  # type: ignore[misc]
            yield _row(name, batch, dtype, sources, interleave(sides, rounds))
    mix = list(wanted.values())[1:]
    sides = {"plain": bursts(MIXED_BATCH, plain), "guided": bursts(MIXED_BATCH, mix)}
    sources = sum(len(resolve(family, mix[row % len(mix)]).sources) for row in range(MIXED_BATCH))
    yield _row(f"{len(mix)} settings in one batch", MIXED_BATCH, dtype, sources, interleave(sides, rounds))


def _row(name: str, batch: int, dtype: str, sources: int, times: dict[str, list[float]]) -> dict[str, object]:
    typical = medians(times)
    to_plain, to_plain_range = ratio(times["guided"], times["plain"])
    to_rows, to_rows_range = ratio(times["guided"], times["rows"]) if "rows" in times else ("", "")
    to_loop, to_loop_range = ratio(times["loop"], times["guided"]) if "loop" in times else ("", "")
    return {
        "setting": name,
        "batch": batch,
        "dtype": dtype,
        "sources": sources,
        "rounds": len(times["plain"]),
        "plain_ms": round(1e3 * typical["plain"], 2),
        "guided_ms": round(1e3 * typical["guided"], 2),
        "over_plain": to_plain,
        "over_plain_quartiles": to_plain_range,
        "over_plain_rows": to_rows,
        "over_plain_rows_quartiles": to_rows_range,
        "loop_ms": round(1e3 * typical["loop"], 2) if "loop" in typical else "",
        "loop_over_guided": to_loop,
        "loop_over_guided_quartiles": to_loop_range,
    }
