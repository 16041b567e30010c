"""Every guided method of the engine against the float64 reference, on random families."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_requests import METHODS, SCORED, World
from seeds import fresh_seed
from tiny_engine import build, serve

TOLERANCE = 1e-8
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "singles", {}),
    ("qwen2", "rows", {"tie": True}),
    ("gemma2", "small", {"final_logit_softcapping": 3.0}),
    ("mistral", "unreferenced", {"sliding_window": 11}),
    ("qwen3", "singles", {"n": 3, "use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1}),
]


@pytest.mark.parametrize(("arch", "kind", "config"), CASES, ids=[f"{arch}-{kind}" for arch, kind, _ in CASES])
def test_every_method_in_one_batch(arch: str, kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    """All methods at once, in float64, arriving at random: greedy and sampled, each token's logprob and the best
    alternatives, on prompts that differ in length from view to view."""
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, arch, kind=kind, **config)
    engine = build(world.family, dtype="float64", max_sequences=40, max_lanes=200, kv_memory=32 << 20)
    sent, asked = [], {}
    for index, steering in enumerate(world.some_steerings(rng, 26)):
        prompts = world.prompts(rng)
        options = {"temperature": rng.choice([0.0, 1.0]), "seed": rng.getrandbits(40), "logprobs": rng.choice([0, 3])}
        sent.append(world.request(f"r{index}", steering, prompts, max_tokens=rng.randint(2, 4), **options))
        asked[f"r{index}"] = (steering, prompts, options["temperature"] == 0)
    outputs = serve(engine, sent, rng)
    for name, (steering, prompts, greedy) in asked.items():
        world.check(steering, prompts, outputs[name], TOLERANCE, greedy)


def test_full_checkpoints_as_sources(tmp_path: Path) -> None:
    """Members that are full weights, merged outside the bank, beside low-rank ones in one request."""
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, "llama", full=("bone-simple", "only-positive"), tie=True)
    engine = build(world.family, dtype="float64", max_lanes=80)
    sent, asked = [], {}
    for index, steering in enumerate(world.steerings(rng, ["mage", "mod", "dexperts", "vas"])):
        prompts = world.prompts(rng)
        sent.append(world.request(f"r{index}", steering, prompts, temperature=0.0, max_tokens=3))
        asked[f"r{index}"] = (steering, prompts)
    outputs = serve(engine, sent, rng)
    for name, (steering, prompts) in asked.items():
        world.check(steering, prompts, outputs[name], TOLERANCE, True)


def test_traces_report_what_the_reference_says(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, "qwen2")
    engine = build(world.family, dtype="float64", max_lanes=200)
    sent, asked = [], {}
    for index, steering in enumerate(world.some_steerings(rng, 20, [m for m in METHODS if m != "fudge"])):
        prompts = world.prompts(rng)
        sent.append(world.request(f"r{index}", {**steering, "trace": True}, prompts, max_tokens=2, seed=index))
        asked[f"r{index}"] = (steering, prompts)
    outputs = serve(engine, sent, rng)
    for name, (steering, prompts) in asked.items():
        world.check(steering, prompts, outputs[name], TOLERANCE, False)
        tokens = [output.token for output in outputs[name]]
        final = torch.log_softmax(world.reference.scores(steering, prompts, tokens)[:-1], dim=-1)
        base = world.reference.scores({"method": "base"}, prompts, tokens)[:-1]
        shift = (base.exp() * (base - final)).sum(dim=-1)
        for step, output in enumerate(outputs[name]):
            assert output.base_logprob == pytest.approx(base[step, output.token].item(), abs=TOLERANCE)
            assert output.shift == pytest.approx(shift[step].item(), abs=1e-7), steering
            assert output.trace is not None
            assert output.trace.argmax_changed == (int(base[step].argmax()) != int(final[step].argmax()))


def test_float32_stays_near(tmp_path: Path) -> None:
    """What servers run with: the same to float32's rounding, greedy tokens included unless two are as good."""
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, "llama", kind="rows")
    engine = build(world.family, max_lanes=200)
    methods = [method for method in METHODS if method not in ("dexperts", "contrastive", "pad", *SCORED)]
    sent, asked = [], {}
    for index, steering in enumerate(world.some_steerings(rng, 18, methods)):
        # Rounding may put another token among the candidates or behind a mask, where the logprob jumps.
        if steering.get("value", "implicit") != "implicit":
            continue
        prompts = world.prompts(rng)
        sent.append(world.request(f"r{index}", steering, prompts, temperature=0.0, max_tokens=4))
        asked[f"r{index}"] = (steering, prompts)
    outputs = serve(engine, sent, rng)
    for name, (steering, prompts) in asked.items():
        world.check(steering, prompts, outputs[name], 1e-3, True)
