"""The engine's whole step through the Triton kernels, interpreted: the tokens that plain torch gives."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from guided_requests import World
from kernel_device import DEVICE
from routed_folder import write_routed_family
from seeds import fresh_seed
from tiny_engine import build, random_prompt, serve

pytest.importorskip("triton", reason="Triton is not on this platform")

from triton_interpreter import MARKS, patch_once_a_launch, patch_small_tiles

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.kernels.gpu import fused_step
from ladle.merging.family.family import Family, load_family
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams

pytestmark = [*MARKS, pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU runs kernels as they are")]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each fused step had."""
    patch_once_a_launch(monkeypatch)
    patch_small_tiles(monkeypatch)
    launch, counts = fused_step.fused_step, []

    def counted(logits: Any, tables: Any) -> Any:
        counts.append(len(tables.source_rows))
        return launch(logits, tables)

    monkeypatch.setattr(fused_step, "fused_step", counted)
    return counts


def sampling(rng: random.Random, **options: Any) -> dict[str, Any]:
    return {
        "max_tokens": 3, "ignore_eos": True, "seed": rng.getrandbits(63), "temperature": rng.choice([0.0, 0.8]),
        "logprobs": rng.choice([None, 2]), **options,
    }  # fmt: skip


def both_ways(
    family: Family, requests: Sequence[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[StepOutput, StepOutput]]:
    outputs = serve(build(family), requests)
    monkeypatch.setenv("LADLE_INTERPRETED_KERNELS", "all")
    fused = serve(build(family), requests)
    assert {name: len(got) for name, got in outputs.items()} == {name: len(got) for name, got in fused.items()}
    pairs = [pair for name in outputs for pair in zip(outputs[name], fused[name], strict=True)]
    assert len(pairs) == 3 * len(requests)
    return pairs


def assert_alike(pairs: Sequence[tuple[StepOutput, StepOutput]]) -> None:
    for torchs, ours in pairs:
        assert torchs.error is None and ours.error is None
        assert (ours.token, ours.text, ours.expert) == (torchs.token, torchs.text, torchs.expert), torchs.request_id
        assert ours.logprob == pytest.approx(torchs.logprob, abs=2e-5)
        assert [token for token, _ in ours.top] == [token for token, _ in torchs.top]
        assert [value for _, value in ours.top] == pytest.approx([value for _, value in torchs.top], abs=2e-5)
        assert (ours.trace is None) == (torchs.trace is None)
        if ours.trace is not None and torchs.trace is not None:
            assert ours.trace.shift == pytest.approx(torchs.trace.shift, abs=1e-4)


def test_guided_requests_of_every_rule(tmp_path: Path, launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear sums, a divergence, a plausibility mask, values of candidates, penalties, bias, truncation, traces, a KL
    budget."""
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng)
    prompts = world.prompts(rng)
    requests = []
    for method, options in {
        "base": {"top_p": 0.9, "temperature": 1.0},
        "mage": {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
        "mod": {"top_k": 20},
        "contrastive": {"logit_bias": ((7, 3.0), (11, -100.0))},
        "vas": {"min_p": 0.05, "temperature": 0.8},
        "cfg": {},
    }.items():
        steerings = world.steerings(rng, [method])
        # Its linear rule is that of the others.
        apart = [s for s in steerings if s.get("divergence") in ("forward_kl", "alpha")]
        steering = rng.choice(apart or steerings)
        more = {"trace": method in ("cfg", "contrastive"), "kl_budget": 0.05 if method == "mage" else None}
        requests.append(world.request(method, {**steering, **more}, prompts, **sampling(rng, **options)))
    assert_alike(both_ways(world.family, requests, monkeypatch))
    # Those that wait for merged weights begin later, so how many a step has is left open.
    assert sum(launches) == 3 * len(requests) and max(launches) > 1


def test_routed_requests(tmp_path: Path, launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000, defer=True))
    requests = []
    for index, steering in enumerate(
        [
            {"method": "fusion_route", "min_stay": 2},
            {"method": "fusion_route", "top_experts": 2, "normalize": "sum"},
            {"method": "co_llm", "threshold": 0.5},
        ]
    ):
        plan = resolve(family, Steering.parse(steering))
        params = SamplingParams(**sampling(rng, repetition_penalty=rng.choice([1.0, 1.4])))
        requests.append(GenerationRequest(str(index), random_prompt(rng, 2, 20), plan, params, {}))
    assert_alike(both_ways(family, requests, monkeypatch))
    assert sum(launches) == 3 * len(requests)
