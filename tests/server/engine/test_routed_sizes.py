"""Experts and a router of other sizes than the base: routed plans against float64 models that see the whole text."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_weights import ReferenceWeights
from routed_folder import EXPERTS, HEAD, SIZES, write_routed_family
from routed_requests import request
from safetensors.torch import load_file
from seeds import fresh_seed
from tiny_engine import build, random_prompt, serve
from torch import Tensor

from ladle.guidance.check import report_family
from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.forward.servable import require_servable
from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarSpec
from ladle.server.engine.requests.request import StepOutput

NAMES = EXPERTS[:3]
# math is low-rank on a model of half the width, json has full weights of that size, chat is a member of the base.
FAMILY: dict[str, Any] = {"defer": True, "full": ("json",), "sizes": {"math": "half", "json": "half", "router": "tiny"}}
STEERING: list[dict[str, Any]] = [
    {"method": "fusion_route"},
    {"method": "fusion_route", "complement": 0.0, "min_stay": 3},
    {"method": "fusion_route", "top_experts": 2, "trace": True},
    {"method": "co_llm", "threshold": 0.45},
]


class Reference:
    def __init__(self, root: Path) -> None:
        self.weights = ReferenceWeights(root)
        self.head = {name: tensor.double() for name, tensor in load_file(root / "experts" / "router" / HEAD).items()}

    def run(self, member: str, text: Sequence[int]) -> tuple[Tensor, Tensor]:
        model = self.weights.members[member][0]
        logits, hidden = self.weights.run(model, {member: 1.0}, [list(text)])
        return torch.log_softmax(logits[0], dim=-1), hidden[0]

    def logprobs(self, steering: Mapping[str, Any], prompt: Sequence[int], output: Sequence[int]) -> list[float]:
        """Of the tokens of ``output``, by the formulas of FusionRoute and Co-LLM."""
        text, start = [*prompt, *output[:-1]], len(prompt) - 1
        own, states = (part[start:] for part in self.run("router", text))
        experts = torch.stack([self.run(name, text)[0][start:] for name in NAMES])
        said = states @ self.head["weight"].T + self.head["bias"]
        chances = torch.sigmoid(states @ self.head["defer"] + self.head["defer_bias"])
        found, last, stayed = [], -1, 0
        for t, token in enumerate(output):
            if steering["method"] == "co_llm" and float(chances[t]) <= steering["threshold"]:
                found.append(float(own[t, token]))
                continue
            best = int(said[t].argmax())
            best = last if last >= 0 and stayed < steering.get("min_stay", 1) else best
            last, stayed = best, stayed + 1 if best == last else 1
            top = said[t].topk(steering["top_experts"]).indices if "top_experts" in steering else torch.tensor([best])
            spoken = torch.logsumexp(experts[top, t] + torch.log_softmax(said[t][top], 0)[:, None], 0)
            share = 0.0 if steering["method"] == "co_llm" else steering.get("complement", 1.0)
            found.append(float(torch.log_softmax(share * own[t] + spoken, dim=-1)[token]))
        return found


def numbers(outputs: Sequence[StepOutput]) -> list[tuple[Any, ...]]:
    return [(o.token, o.logprob, o.expert, o.trace, o.text, o.finish_reason) for o in outputs]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_routed_family(tmp_path_factory.mktemp("sizes"), "qwen2", fresh_seed() % 1000, **FAMILY)


@pytest.mark.parametrize("schedule", ["eager", "lazy", "auto"])
def test_scores_are_those_of_the_formulas(root: Path, schedule: str) -> None:
    rng = random.Random(fresh_seed())
    reference, family = Reference(root), load_family(root)
    engine = build(family, dtype="float64", max_lanes=80, expert_schedule=schedule)
    prompts = [random_prompt(rng, 1, 40) for _ in STEERING]
    requests = [
        request(family, str(i), steering, prompt, temperature=rng.choice([0.0, 1.0]), seed=i)
        for i, (steering, prompt) in enumerate(zip(STEERING, prompts, strict=True))
    ]
    outputs = serve(engine, requests, rng)
    for index, (steering, prompt) in enumerate(zip(STEERING, prompts, strict=True)):
        got = outputs[str(index)]
        assert got[-1].error is None
        expected = reference.logprobs(steering, prompt, [output.token for output in got])
        assert [output.logprob for output in got] == pytest.approx(expected, abs=1e-6), steering
    late = dict(engine.stats().catch_up_tokens)
    assert any(late.values()) == (schedule != "eager")
    assert schedule != "auto" or not late["chat"] or late["json"], "each expert that has a forward of its own may wait"


def test_lazy_is_eager_bit_for_bit_also_preempted_with_n_and_a_form(root: Path) -> None:
    rng = random.Random(fresh_seed())
    family = load_family(root)

    def run(**options: Any) -> tuple[Engine, dict[str, list[tuple[Any, ...]]]]:
        engine = build(family, **{"max_lanes": 120, "prefix_cache": False, **options})
        found = serve(engine, requests)
        return engine, {name: numbers(outputs) for name, outputs in found.items()}

    requests = [
        request(
            family, str(i), rng.choice(STEERING), random_prompt(rng, 20, 40), max_tokens=30, temperature=1.0, seed=i
        )
        for i in range(6)
    ]
    compiled = GrammarCompiler(build(family).tokenizer, (2, 0)).compile(GrammarSpec("regex", "[a-z ]{4,20}"))
    requests[1] = replace(requests[1], grammar=compiled)
    # As n answers of one request are: the same prompt and plan, other seeds.
    requests += [
        replace(requests[0], request_id=f"n{i}", sampling=replace(requests[0].sampling, seed=i)) for i in (7, 8)
    ]
    eager, expected = run(expert_schedule="eager")
    blocks = -(-(8 << 20) // eager.blocks.total)
    for options in ({}, {"max_batch_tokens": 1, "max_sequences": 3}, {"kv_memory": 50 * blocks}):
        engine, found = run(**options)
        assert found == expected, options
        assert any(engine.stats().catch_up_tokens.values())
    assert engine.stats().preemptions > 0


def test_a_model_as_it_is_may_be_an_expert_and_a_head_alone_a_router(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    shared = {"json": "", "router": "head"}
    sizes = {"json": "half", "router": "tiny", "math": "half"}
    root = write_routed_family(tmp_path, seed=seed % 1000, defer=True, shared=shared, sizes=sizes)
    (root / "experts" / "router").mkdir()
    (root / "head" / HEAD).rename(root / "experts" / "router" / HEAD)
    manifest = (root / "family.toml").read_text().replace('"head"', '"experts/router"')
    (root / "family.toml").write_text(manifest)
    family = load_family(root)
    require_servable(family)
    report = report_family(family)
    storage = {member.name: member.storage for member in report.members}
    assert (storage["json"], storage["router"], storage["math"]) == ("plain", "plain", "low-rank")
    assert "grown from tiny" in report.text() and {m.name: m.members for m in report.models} == {
        "half": ("math", "json"), "tiny": ("router",),
    }  # fmt: skip
    reference, prompt = Reference(root), random_prompt(rng, 5, 20)
    (got,) = serve(
        build(family, dtype="float64"), [request(family, "r", STEERING[0], prompt, temperature=1.0, seed=seed)]
    ).values()
    expected = reference.logprobs(STEERING[0], prompt, [output.token for output in got])
    assert [output.logprob for output in got] == pytest.approx(expected, abs=1e-6)
    # Twice the same model could not be told apart.
    (root / "family.toml").write_text(manifest.replace('path = "experts/math"\n', ""))
    with pytest.raises(FamilyError, match="experts: 'math' and 'json' have the same folder"):
        load_family(root)


def test_a_preference_merges_the_base_alone(root: Path, tmp_path: Path) -> None:
    steering = {"method": "fusion_route", "preference": {"positive": 1.0, "simple": 2.0}}
    family = load_family(root)
    plan = resolve(family, Steering.parse(steering))
    assert "the base is merged, but not under router, math, json, grown from other models" in plan.warnings
    assert [source.model for source in plan.sources] == ["tiny", "half", "half", ""]
    assert [dict(source.coefficients).keys() & {"bone-simple"} for source in plan.sources] == [
        *[set()] * 3,
        {"bone-simple"},
    ]
    term = {"method": "custom", "terms": [{"source": "math", "weight": 1}, {"source": {"json": 0.5}, "weight": 1}]}
    assert [source.model for source in resolve(family, Steering.parse(term)).sources] == ["half", "half"]
    sizes = dict.fromkeys((*NAMES, "router"), "half")
    alone = load_family(write_routed_family(tmp_path, experts=3, sizes=sizes))
    for key, value in (("preference", steering["preference"]), ("coefficients", {"only-simple": 0.5})):
        with pytest.raises(InputError, match=rf"steering\.{key}.*neither the router nor any expert was grown"):
            resolve(alone, Steering.parse({"method": "fusion_route", key: value}))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('base = "tiny"', 'base = "huge"', r"router\.base: 'huge' is no entry of \[\[models\]\]; known: half, tiny"),
        (
            'base = "half"',
            'base = "big"',
            r"experts\[0\]\.base: 'big' is no entry of \[\[models\]\]; known: half, tiny",
        ),
        (
            'path = "experts/chat"',
            "",
            r"experts\[2\]\.path: missing; only an expert with a base of its own may do without",
        ),
    ],
)
def test_what_is_not_there_is_named(root: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (root / "family.toml").read_text()
    assert old in text and SIZES.keys() == {"half", "tiny"}
    (tmp_path / "family.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(FamilyError, match=message):
        load_family(tmp_path)
