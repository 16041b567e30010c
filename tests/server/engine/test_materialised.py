"""Full-weight members: merged on demand, kept within a budget, and equal to the merged checkpoint."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.streaming_merge import Merge
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams
from tests.fixtures.tiny_models import write_family

PROMPT = tuple(range(5, 40))
FULL = ("bone-positive", "bone-simple", "bone-concise")


@pytest.fixture(params=[FULL, FULL[:1]], ids=["all full", "full beside low-rank"])
def family(tmp_path: Path, request: pytest.FixtureRequest) -> Family:
    return load_family(write_family(tmp_path, "llama", seed=3, n=3, full=request.param))


def preference(first: float) -> dict[str, float]:
    return {"positive": first, "simple": (1 - first) / 2, "concise": (1 - first) / 2}


def ask(family: Family, number: int, first: float, **sampling: float) -> GenerationRequest:
    plan = resolve(family, Steering(method="bone_soup", preference=preference(first)))
    params = SamplingParams(max_tokens=12, **{"temperature": 0.0, "seed": number, **sampling})
    return GenerationRequest(f"r{number}", PROMPT, plan, params)


def run(engine: Engine, requests: list[GenerationRequest]) -> dict[str, list[StepOutput]]:
    outputs: dict[str, list[StepOutput]] = {request.request_id: [] for request in requests}
    left = len(requests)
    done = threading.Event()

    def sink(batch: list[StepOutput]) -> None:
        nonlocal left
        for output in batch:
            outputs[output.request_id].append(output)
            left -= output.finish_reason is not None
        if left == 0:
            done.set()

    for request in requests:
        engine.submit(request, sink)
    assert done.wait(60), "the engine did not finish"
    return outputs


def expected(engine: Engine, family: Family, request: GenerationRequest) -> list[int]:
    """Greedy tokens of transformers on the merged weights, up to the engine's stop rules."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(family.base_path, dtype=torch.float32)
    state = dict(Merge.of(family).tensors(dict(request.plan.sources[0].coefficients), torch.float32))
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    out = model.generate(
        torch.tensor([request.prompt]), max_new_tokens=12, do_sample=False, eos_token_id=sorted(engine.eos)
    )
    return out[0, len(request.prompt) :].tolist()


def test_tokens_equal_the_merged_checkpoint(family: Family) -> None:
    engine = Engine(family, EngineConfig(dtype="float32", kv_memory=1 << 22, max_sequences=8))
    engine.start()
    try:
        requests = [ask(family, number, first) for number, first in enumerate((0.0, 0.3, 0.3, 1.0))]
        outputs = run(engine, requests)
        for request in requests:
            tokens = [output.token for output in outputs[request.request_id]]
            assert tokens == expected(engine, family, request)
        # Two requests with one preference shared one merged set.
        assert engine.store.misses == 3
        engine.check_integrity()
    finally:
        engine.shutdown()


def test_budget_is_kept_and_evicted_sets_come_back(family: Family) -> None:
    probe = Engine(family, EngineConfig(dtype="float32", kv_memory=1 << 22))
    budget = 2 * probe.store.set_nbytes(next(iter(probe.store.models))) + 1000
    probe.store.close()
    engine = Engine(family, EngineConfig(dtype="float32", kv_memory=1 << 22, weights_memory=budget, max_sequences=8))
    engine.start()
    try:
        requests = [ask(family, n, n / 4, temperature=1.0) for n in range(5)]
        together = run(engine, requests)
        assert engine.store.used <= budget
        assert engine.store.evictions >= 2
        for request in requests[:3]:
            alone = run(engine, [request])[request.request_id]
            assert [o.token for o in alone] == [o.token for o in together[request.request_id]]
        engine.check_integrity()
    finally:
        engine.shutdown()


def test_a_set_larger_than_the_budget_is_refused_at_once(family: Family) -> None:
    engine = Engine(family, EngineConfig(dtype="float32", kv_memory=1 << 22, weights_memory=1000))
    with pytest.raises(InputError, match="weights_memory"):
        engine.submit(ask(family, 0, 0.5), lambda outputs: None)
    engine.store.close()


def test_a_failing_merge_fails_its_request_alone(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(family, EngineConfig(dtype="float32", kv_memory=1 << 22))

    def broken(key: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(engine.store, "_build", broken)
    engine.start()
    try:
        base = GenerationRequest(
            "plain", PROMPT, resolve(family, Steering(method="base")), SamplingParams(max_tokens=5, temperature=0.0)
        )
        outputs = run(engine, [ask(family, 0, 0.5), base])
        assert outputs["r0"][-1].finish_reason == "error"
        assert "OSError" in (outputs["r0"][-1].error or "")
        assert outputs["plain"][-1].finish_reason in ("stop", "length")
        engine.check_integrity()
    finally:
        engine.shutdown()
