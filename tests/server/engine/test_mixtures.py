"""A mixture of experts as the base: members on its experts, full weights, merges and int8, all in one batch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import OF_PARAMETERS, write_expert_member, write_mixture, write_parameter_member
from peft import PeftModel
from seeds import fresh_seed
from tiny_engine import alone, build, make_request, random_prompt, serve
from tiny_models import write_full_member
from torch import Tensor
from transformers import AutoModelForCausalLM

from ladle.guidance.check import report_family
from ladle.kernels.cpu.tiled_product import quantise
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.export import export
from ladle.server.engine.forward.servable import require_servable

pytestmark = pytest.mark.filterwarnings(OF_PARAMETERS)
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight")
NAMES = ("fused", "single", "whole")


def load(base: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, experts_implementation="eager")
    return model.eval()


def write(root: Path, seed: int, full: bool = True) -> Path:
    base = write_mixture(root / "base", "qwen3_moe", seed % 1000)
    write_parameter_member(root / "fused", base, seed % 999, EXPERTS, r=2)
    write_expert_member(root / "single", "qwen3_moe", seed % 998)
    write_full_member(root / "whole", base, seed % 997)
    lines = ['name = "mixture"', 'objectives = ["a", "b", "c"]', "[base]", 'model = "base"']
    for name, objective in list(zip(NAMES, "abc", strict=True))[: 3 if full else 2]:
        lines += ["[[policies]]", f'name = "{name}"', f'path = "{name}"', f'objective = "{objective}"']
    lines += ["[[values]]", 'name = "v"', 'kind = "implicit"', 'path = "fused"', 'objective = "a"']
    (root / "family.toml").write_text("\n".join([*lines, ""]))
    return root


@pytest.fixture(scope="module")
def seed() -> int:
    return fresh_seed()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Family:
    return load_family(write(tmp_path_factory.mktemp("mixture"), seed))


@pytest.fixture(scope="module")
def states(family: Family) -> dict[str, dict[str, Tensor]]:
    """What PEFT and transformers make of each member, in float64; the base under ""."""
    made = {"": dict(load(family.base_path).state_dict()), "whole": dict(load(family.root / "whole").state_dict())}
    for name in ("fused", "single"):
        model: Any = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(family.base_path), family.root / name
        )
        made[name] = dict(model.double().merge_and_unload().state_dict())
    return made


@torch.inference_mode()
def reference(
    model: Any, states: Mapping[str, Mapping[str, Tensor]], row: Mapping[str, float], ids: list[int]
) -> Tensor:
    plain = states[""]
    mixed = {name: w + sum(c * (states[m][name] - w) for m, c in row.items()) for name, w in plain.items()}
    model.load_state_dict(mixed)
    return torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0], dim=-1)


def test_every_mix_is_what_peft_and_transformers_make_of_it(
    family: Family, states: dict[str, dict[str, Tensor]], seed: int
) -> None:
    rng = random.Random(seed)
    engine = build(family, dtype="float32", max_lanes=60)
    rows: list[dict[str, float]] = [{}, {"fused": 1.0}, {"single": 1.0}, {"whole": 1.0}]
    rows += [{"fused": rng.uniform(-1, 1.5), "single": rng.uniform(-1, 1)} for _ in range(3)]
    rows.append({name: rng.uniform(-0.4, 0.8) for name in NAMES})
    requests = [
        make_request(str(i), random_prompt(rng, 3, 30), row, max_tokens=6, temperature=1.0, seed=i, ignore_eos=True)
        for i, row in enumerate(rows)
    ]
    outputs = serve(engine, requests, rng)
    model = load(family.base_path)
    for request, row in zip(requests, rows, strict=True):
        got = outputs[request.request_id]
        same = [(output.token, output.logprob) for output in alone(engine, request)]
        assert same == [(output.token, output.logprob) for output in got], "what shares the batch shows"
        tokens = [output.token for output in got]
        expected = reference(model, states, row, [*request.prompt, *tokens[:-1]])[len(request.prompt) - 1 :]
        for output, line in zip(got, expected, strict=True):
            assert output.logprob == pytest.approx(float(line[output.token]), abs=1e-4), row


def test_a_merge_is_what_transformers_loads(
    family: Family, states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    row = {"fused": 0.7, "single": -0.4, "whole": 0.3}
    merged = load(export(family, row, tmp_path / "out", dtype=torch.float64))
    ids = list(range(5, 20))
    expected = reference(load(family.base_path), states, row, ids)
    with torch.inference_mode():
        ours = torch.log_softmax(merged(input_ids=torch.tensor([ids]), use_cache=False).logits[0], dim=-1)
    assert (ours - expected).abs().max().item() <= 1e-5


def test_a_check_finds_nothing_wrong(family: Family) -> None:
    require_servable(family)
    report = report_family(family)
    assert {member.name: member.storage for member in report.members} == {
        "fused": "low-rank", "single": "low-rank", "whole": "full", "v": "low-rank",
    }  # fmt: skip


def test_int8_holds_the_experts_too(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    family = load_family(write(tmp_path, seed, full=False))
    engine = build(family, quantize="int8", prefix_cache=False)
    for dtype in ("bfloat16", "float64"):  # whose products of all experts at once there are not
        assert alone(build(family, dtype=dtype), make_request("d", [5, 6], {"fused": 0.5}))[-1].error is None
    assert engine.models.base.nbytes < 0.6 * build(family, prefix_cache=False).models.base.nbytes
    model = load(family.base_path)
    state = {}
    for name, weight in model.state_dict().items():
        linear = name.endswith(("_proj.weight", "lm_head.weight")) or name in family.architecture.experts.weights
        parts = weight.float() if weight.ndim == 3 else weight.float()[None]
        rounded = (
            [held.double() * torch.from_numpy(steps)[:, None] for held, steps in map(quantise, parts)] if linear else []
        )
        state[name] = torch.stack(rounded).view(weight.shape) if linear else weight
    prompt = random_prompt(rng, 5, 20)
    request = make_request("r", prompt, {}, max_tokens=4, temperature=0.0, ignore_eos=True)
    got = alone(engine, request)
    expected = reference(model, {"": state}, {}, [*prompt, *(o.token for o in got[:-1])])[len(prompt) - 1 :]
    for output, line in zip(got, expected, strict=True):
        assert output.logprob == pytest.approx(float(line[output.token]), abs=5e-3)
