"""Routed plans against float64 models that see the whole text anew for every token, and the identities of routing."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_weights import ReferenceWeights
from routed_folder import EXPERTS, HEAD, write_routed_family
from routed_requests import request, steerings
from safetensors.torch import load_file, save_file
from seeds import fresh_seed
from tiny_engine import alone, build, random_prompt, serve
from torch import Tensor

from ladle.merging.family.family import load_family
from ladle.server.engine.requests.request import StepOutput

NAMES = EXPERTS[:3]


class Reference:
    def __init__(self, root: Path) -> None:
        self.weights = ReferenceWeights(root)
        self.head = {name: tensor.double() for name, tensor in load_file(root / "experts" / "router" / HEAD).items()}

    def base(self, steering: Mapping[str, Any]) -> dict[str, float]:
        if "preference" not in steering:
            return dict(steering.get("coefficients", {}))
        shares = np.array([steering["preference"].get(name, 0.0) for name in self.weights.objectives])
        beta, n = self.weights.manifest["soup"]["beta"], len(shares)
        matrix = np.full((n, n), (1 - beta) / (n - 1)) + np.eye(n) * (beta - (1 - beta) / (n - 1))
        solved = np.linalg.solve(matrix.T, shares / shares.sum())
        return {f"bone-{name}": float(c) for name, c in zip(self.weights.objectives, solved, strict=True)}

    def scores(
        self, steering: Mapping[str, Any], prompt: Sequence[int], output: Sequence[int]
    ) -> tuple[Tensor, list[str | None]]:
        """Log-softmax of the scores [len(output), vocabulary], and who writes each token."""
        below, text = self.base(steering), [[*prompt, *output[:-1]]]
        start = len(prompt) - 1
        logits, hidden = self.weights.run("", {**below, "router": 1.0}, text)
        own = torch.log_softmax(logits[0, start:], dim=-1)
        states = hidden[0, start:]
        said = states @ self.head["weight"].T + self.head.get("bias", 0.0)
        experts = [self.weights.run("", {**below, name: 1.0}, text)[0][0, start:].log_softmax(dim=-1) for name in NAMES]
        a, b = steering.get("complement", 1.0), steering.get("expert_weight", 1.0)
        total = a + b if steering.get("normalize") == "sum" else 1.0
        rows, speakers = [], []
        last, stayed = -1, 0
        for t, w in enumerate(said):
            if steering["method"] == "co_llm":
                chance = torch.sigmoid(states[t] @ self.head["defer"] + self.head["defer_bias"][0])
                if float(chance) <= steering.get("threshold", 0.5):
                    rows.append(own[t])
                    speakers.append(None)
                    continue
                a, b, total = 0.0, 1.0, 1.0
            best = int(w.argmax())
            if last >= 0 and stayed < steering.get("min_stay", 1):
                best = last
            stayed = stayed + 1 if best == last else 1
            last = best
            top = w.topk(steering.get("top_experts", 1)).indices.tolist() if steering.get("top_experts") else [best]
            shares = torch.softmax(w[top], dim=-1)
            spoken = torch.logsumexp(
                torch.stack([experts[e][t] + s.log() for e, s in zip(top, shares, strict=True)]), 0
            )
            rows.append((a * own[t] + b * spoken) / total)
            speakers.append(NAMES[best])
        return torch.log_softmax(torch.stack(rows), dim=-1), speakers


@pytest.mark.parametrize(("arch", "full"), [("llama", ()), ("qwen2", ("json",)), ("gemma2", ())])
def test_every_option_is_what_its_formula_says(tmp_path: Path, arch: str, full: tuple[str, ...]) -> None:
    rng = random.Random(seed := fresh_seed())
    root = write_routed_family(tmp_path, arch, seed % 1000, defer=True, full=full)
    family, reference = load_family(root), Reference(root)
    engine = build(family, dtype="float64", max_lanes=80)
    cases = {str(index): (steering, random_prompt(rng, 1, 40)) for index, steering in enumerate(steerings(rng))}
    requests = [
        request(family, name, steering, prompt, temperature=rng.choice([0.0, 1.0]), seed=rng.getrandbits(40))
        for name, (steering, prompt) in cases.items()
    ]
    outputs = serve(engine, requests, rng)
    heard = set()
    for name, (steering, prompt) in cases.items():
        got = outputs[name]
        assert all(output.error is None for output in got), got[-1].error
        expected, speakers = reference.scores(steering, prompt, [output.token for output in got])
        assert [output.expert for output in got] == speakers, steering
        heard |= set(speakers)
        for row, output in zip(expected, got, strict=True):
            assert output.logprob == pytest.approx(float(row[output.token]), abs=1e-6), steering
            assert (output.trace is not None) == steering.get("trace", False)
            if output.trace is not None:
                assert output.trace.router is not None and set(output.trace.router) == set(NAMES)
                assert (
                    output.expert == max(output.trace.router, key=output.trace.router.__getitem__)
                    or "min_stay" in steering
                )
    assert len(heard) > 1


def numbers(outputs: Sequence[StepOutput]) -> list[tuple[Any, ...]]:
    return [(o.token, o.logprob, o.expert, o.trace, o.text, o.finish_reason) for o in outputs]


def test_a_batch_of_routed_requests_gives_each_its_own_tokens(tmp_path: Path) -> None:
    """Also where lanes are few and memory is short: float32, bit for bit, preempted or not."""
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000, defer=True))
    requests = [
        request(
            family, str(index), {**steering, "trace": rng.random() < 0.3}, random_prompt(rng, 1, 60),
            temperature=rng.choice([0.0, 0.9]), seed=rng.getrandbits(40), max_tokens=rng.randint(1, 20),
        )
        for index, steering in enumerate(steerings(rng))
    ]  # fmt: skip
    single = build(family, prefix_cache=False)
    expected = {r.request_id: numbers(alone(single, r)) for r in requests}
    for options in (
        {"max_lanes": 100},
        {"max_lanes": 100, "prefix_cache": False},
        {"max_sequences": 3, "max_lanes": 15},
    ):
        outputs = serve(build(family, **options), requests, rng)
        assert {name: numbers(found) for name, found in outputs.items()} == expected


def test_a_preempted_sequence_keeps_its_expert(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000))
    steering = {"method": "fusion_route", "min_stay": 6}
    requests = [
        request(family, str(i), steering, random_prompt(rng, 20, 40), max_tokens=40, temperature=1.0, seed=i)
        for i in range(6)
    ]
    roomy = build(family, prefix_cache=False)
    expected = {r.request_id: alone(roomy, r) for r in requests}
    blocks = -(-(8 << 20) // roomy.blocks.total)
    tight = build(family, kv_memory=50 * blocks, prefix_cache=False)
    outputs = serve(tight, requests)
    assert tight.stats().preemptions > 0
    for name, wanted in expected.items():
        assert [(o.token, o.expert) for o in outputs[name]] == [(o.token, o.expert) for o in wanted]


def test_one_expert_without_complement_is_that_expert(tmp_path: Path) -> None:
    """Uniform scores choose the first expert everywhere; its tokens are those of a plan of it alone."""
    rng = random.Random(seed := fresh_seed())
    root = write_routed_family(tmp_path, seed=seed % 1000)
    save_file({"weight": torch.zeros(3, 32)}, root / "experts" / "router" / HEAD)
    family = load_family(root)
    engine = build(family)
    prompt = random_prompt(rng, 3, 30)
    for sampling in ({"temperature": 0.0}, {"temperature": 1.1, "seed": 5, "top_p": 0.9}):
        routed = alone(engine, request(family, "a", {"method": "fusion_route", "complement": 0}, prompt, **sampling))
        own = {"method": "custom", "terms": [{"source": NAMES[0], "weight": 1.0}]}
        single = alone(engine, request(family, "b", own, prompt, **sampling))
        assert [o.token for o in routed] == [o.token for o in single]
        assert [o.logprob for o in routed] == pytest.approx([o.logprob for o in single], abs=1e-5)
        assert {o.expert for o in routed} == {NAMES[0]} and {o.expert for o in single} == {None}


def test_numbers_that_are_none_end_that_request_alone(tmp_path: Path) -> None:
    family = load_family(write_routed_family(tmp_path))
    engine = build(family)
    assert engine.models.router is not None
    weight = engine.models.router._weight
    good = request(family, "good", {"method": "bone_soup", "preference": {"positive": 1}}, [5, 6])
    weight[1, 0] = torch.nan
    outputs = serve(engine, [request(family, "bad", {"method": "fusion_route", "complement": 0}, [5, 6]), good])
    assert outputs["bad"][-1].error and "not finite" in outputs["bad"][-1].error
    assert outputs["good"][-1].finish_reason == "length"
