"""Steering vectors in a step, in every form that it has: transformers' own model with forward hooks is the measure."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_process import PREPARED
from seeds import fresh_seed
from tiny_engine import (
    Recorder,
    alone,
    build,
    family_of,
    make_request,
    merged_state,
    random_coefficients,
    random_prompt,
    serve,
)
from tiny_models import write_family, write_tiny_base
from transformers import AutoModelForCausalLM
from vector_folder import write_vectors

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.bank.bank import Bank
from ladle.merging.family.family import Family, load_family
from ladle.server.engine import engine_config
from ladle.server.engine.engine import Engine
from ladle.server.engine.forward.compiled_stack import DecoderStack
from ladle.server.engine.graphs import decode_graphs
from ladle.server.engine.requests.request import StepOutput

SHAPES = ("llama", "gemma2", "phi3", "cohere")
"""Fused layers and transformers' own, norms on either side, one product for several layers, a parallel block."""
BARE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2}, "gpt_neox": {}, "gpt2": {}, "opt": {"ffn_dim": 64},
}  # fmt: skip
"""Experts, layers that lie elsewhere or under another name."""


def steered_family(folder: Path, arch: str = "llama", seed: int = 0, **options: Any) -> Family:
    root = write_family(folder, arch, seed, policies=False, **options)
    write_vectors(root, seed + 1)
    return load_family(root)


def wish(rng: random.Random, family: Family) -> dict[str, float]:
    """Coefficients of members and vectors, some of them 0."""
    return {
        **random_coefficients(rng, family.mergeable),
        **{name: rng.choice([0.0, rng.uniform(-3, 3), rng.uniform(-1, 1)]) for name in family.vectors},
    }


@torch.inference_mode()
def reference(
    family: Family,
    coefficients: Mapping[str, float],
    tokens: Sequence[int],
    round_to: torch.dtype = torch.float64,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """[tokens, vocabulary] float64 log-probabilities of transformers' model in ``dtype``, merged weights written out,
    vectors added by hooks; ``round_to``: what its weights are held in before they are merged."""
    model: Any = AutoModelForCausalLM.from_pretrained(family.base_path, dtype=dtype, attn_implementation="eager").eval()
    model.load_state_dict({name: value.to(round_to).to(dtype) for name, value in model.state_dict().items()})
    if model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.load_state_dict(merged_state(model, Bank(list(family.low_rank.values())), coefficients))

    def add(index: int) -> Any:
        total = sum(coefficients.get(name, 0.0) * v.directions[index].to(dtype) for name, v in family.vectors.items())
        return lambda _, args, out: (out[0] + total, *out[1:]) if isinstance(out, tuple) else out + total

    (layers,) = (m for path, m in model.named_modules() if path.rpartition(".")[2] in ("layers", "h"))
    for index, layer in enumerate(layers):
        layer.register_forward_hook(add(index))
    return torch.log_softmax(model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].double(), -1)


def furthest(
    engine: Engine, family: Family, rng: random.Random, wishes: Sequence[Mapping[str, float]], **options: Any
) -> float:
    """Serve a request for each of ``wishes`` in one batch; the largest difference of any token's log-probability from
    the reference's."""
    recorder = Recorder(engine)
    requests = [
        make_request(f"{index}", random_prompt(rng, 1, 40), wish, max_tokens=rng.randint(1, 9), seed=index)
        for index, wish in enumerate(wishes)
    ]
    outputs, worst = serve(engine, requests, rng), 0.0
    for request, coefficients in zip(requests, wishes, strict=True):
        tokens = [output.token for output in outputs[request.request_id]]
        expected = reference(family, coefficients, [*request.prompt, *tokens][:-1], **options)
        ours = torch.stack([recorder.logits[request.request_id][index][0] for index in range(len(tokens))])
        apart = torch.log_softmax(ours.double(), -1) - expected[len(request.prompt) - 1 :]
        worst = max(worst, apart.abs().max().item())
    return worst


@pytest.mark.parametrize("arch", SHAPES)
def test_equals_transformers_with_forward_hooks(arch: str, tmp_path: Path) -> None:
    """Prompts in chunks beside tokens, mixed with LoRA members, other coefficients in every row."""
    rng = random.Random(seed := fresh_seed())
    family = steered_family(tmp_path, arch, seed % 1000)
    engine = build(family, max_batch_tokens=30)
    alone_too = [{}, {"calm": rng.uniform(-2, 2)}]
    assert furthest(engine, family, rng, [wish(rng, family) for _ in range(5)] + alone_too) <= 1e-4


@pytest.mark.parametrize("arch", BARE)
def test_a_base_and_vectors_alone(arch: str, tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    write_tiny_base(tmp_path / "base", arch, seed % 1000, **BARE[arch])
    (tmp_path / "family.toml").write_text('name = "bare"\n[base]\nmodel = "base"\n')
    write_vectors(tmp_path, seed)
    family = load_family(tmp_path)
    wishes = [wish(rng, family) for _ in range(4)]
    # transformers' experts know no float64.
    assert furthest(build(family), family, rng, wishes, dtype=torch.float32) <= 1e-4


def test_sixteen_coefficients_in_a_batch_are_sixteen_runs(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = steered_family(tmp_path, seed=seed % 1000)
    prompt = random_prompt(rng, 5, 20)
    requests = [
        make_request(f"{index}", prompt, {"calm": index / 4 - 2, "loud": (index % 3) / 2}, seed=3, ignore_eos=True)
        for index in range(16)
    ]
    engine = build(family)
    together, recorded = serve(engine, requests, rng), set()
    for request in requests:
        single = alone(engine, request)
        assert [o.token for o in together[request.request_id]] == [o.token for o in single]
        assert [o.logprob for o in together[request.request_id]] == pytest.approx([o.logprob for o in single], abs=1e-5)
        recorded.add(tuple(o.logprob for o in single))
    assert len(recorded) == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_is_the_plain_answer_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    """Alone, and beside others in whose steps vectors are added; and in a family that has no vectors at all."""
    rng = random.Random(seed := fresh_seed())
    family = steered_family(tmp_path / "with", seed=seed % 1000)
    prompt, merged = random_prompt(rng, 20, 40), {"bone-positive": 0.7}
    plain = build(family_of(tmp_path / "without", seed=seed % 1000, policies=False), dtype=dtype)
    engine = build(family, dtype=dtype, prefix_cache=False)
    for coefficients in ({}, merged):
        expected = alone(plain, make_request("r", prompt, coefficients, seed=1, max_tokens=12))
        none = make_request("r", prompt, {**coefficients, "calm": 0.0, "loud": 1e-8}, seed=1, max_tokens=12)
        others = [make_request(f"{i}", random_prompt(rng, 1, 9), {"loud": 2.0}, max_tokens=20) for i in range(2)]
        assert said(alone(engine, none)) == said(expected)
        crowded = said(serve(engine, [none, *others])["r"])
        if dtype == "float32":
            beside = [make_request(f"{i}", request.prompt, max_tokens=20) for i, request in enumerate(others)]
            expected = serve(build(family, dtype=dtype, prefix_cache=False), [none, *beside])["r"]
            assert crowded == said(expected)


def said(outputs: Sequence[StepOutput]) -> list[tuple[int, float | None]]:
    return [(output.token, output.logprob) for output in outputs]


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float32", "quantize": "int8"}], ids=["", "int8"])
def test_compiled_layers_add_the_same(tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations in float32, as on a processor without bfloat16, so that the weights are all that is rounded."""
    rng = random.Random(seed := fresh_seed())
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: False)
    family = steered_family(tmp_path, seed=seed % 1000)
    wishes = [wish(rng, family) for _ in range(4)] + [{"calm": 1.5}, {}]
    if "quantize" not in options:
        engine = build(family, **options)
        assert engine.models.base.compiled
        # Factors of members are held in float16; vectors in float32.
        assert furthest(engine, family, rng, wishes, round_to=torch.bfloat16) <= 1e-2
        assert (
            furthest(engine, family, rng, [{"calm": c, "loud": 1.0} for c in (-2, 1)], round_to=torch.bfloat16) <= 1e-4
        )
    else:
        # Its weights are nobody else's: against the same engine's plain layers.
        requests = [make_request(f"{i}", random_prompt(rng, 1, 30), one, seed=i) for i, one in enumerate(wishes)]
        made = [serve(build(family, **options, compiled_layers=on), requests) for on in (True, False)]
        for request in requests:
            for one, other in zip(*(outputs[request.request_id] for outputs in made), strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=2e-3)
                if one.token != other.token:
                    break


def test_steps_of_one_model_take_vectors_where_rows_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps beyond the rows of the compiled form go through the layers behind it, which add the same."""
    rng = random.Random(seed := fresh_seed())
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: False)
    family = steered_family(tmp_path, seed=seed % 1000)
    engine = build(family, dtype="bfloat16")
    (stack,) = (module for module in engine.models.base.model.modules() if isinstance(module, DecoderStack))
    stack.most_rows = 3
    wishes = [{"calm": rng.uniform(-2, 2), "loud": index - 2} for index in range(6)]
    assert furthest(engine, family, rng, wishes, round_to=torch.bfloat16) <= 1e-4


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(family: Family, **options: Any) -> Engine:
        made.append(build(family, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.shutdown()


def test_a_model_that_is_divided_adds_the_same(
    tmp_path: Path, engines: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ladle.server.engine.ranks.ranks.subprocess", PREPARED)
    rng = random.Random(seed := fresh_seed())
    family = steered_family(tmp_path, seed=seed % 1000)
    requests = [make_request(f"{i}", random_prompt(rng, 1, 30), wish(rng, family), seed=i) for i in range(4)]
    expected = serve(engines(family, dtype="float64"), requests)
    found = serve(engines(family, dtype="float64", tensor_parallel=2), requests)
    for name, outputs in expected.items():
        assert [o.token for o in found[name]] == [o.token for o in outputs]
        assert [o.logprob for o in found[name]] == pytest.approx([o.logprob for o in outputs], abs=1e-9)


@pytest.mark.parametrize("members", [True, False])
def test_recorded_steps_add_the_same(members: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of recording: plain, merged, steered, both; a row that is left over gets nothing."""
    rng = random.Random(seed := fresh_seed())
    root = write_family(tmp_path, seed=seed % 1000, policies=False)
    if not members:
        text = (root / "family.toml").read_text()
        (root / "family.toml").write_text(text[: text.index("[soup]")])
    write_vectors(root, seed)
    family = load_family(root)
    monkeypatch.setattr(decode_graphs, "recorder_for", lambda device: lambda work: work)
    engine = build(family, compiled_layers=False)
    (graphs,) = engine.runner._recorded.values()
    kinds = {(size.merged, size.steered) for size in graphs._replays}
    assert kinds == ({(False, False), (True, False), (False, True), (True, True)} if members else
                     {(False, False), (False, True)})  # fmt: skip
    taken = set()
    run = graphs.run
    monkeypatch.setattr(
        graphs, "run", lambda layout, size, *rest: (taken.add(size.steered), run(layout, size, *rest))[1]
    )
    wishes = [wish(rng, family) for _ in range(5)] if members else [{"calm": 1.0}, {"loud": -1.0}, {}]
    assert furthest(engine, family, rng, [*wishes, {"calm": 0.5}, {"calm": -1.5}]) <= 1e-4
    assert True in taken


def test_equal_prompts_share_state_under_equal_vectors_alone(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    engine = build(steered_family(tmp_path, seed=seed % 1000))
    prompt, cached = random_prompt(rng, 60, 60), []
    for coefficients in ({}, {"calm": 1.0}, {"calm": 1.0}, {"calm": 1.5}, {"loud": 1.0}, {"calm": 1.5}, {}):
        cached.append(alone(engine, make_request("r", prompt, coefficients, max_tokens=2))[-1].cached_tokens)
    assert [tokens > 0 for tokens in cached] == [False, False, True, False, False, True, True]


def test_what_is_preempted_goes_on_as_it_was(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = steered_family(tmp_path, seed=seed % 1000)
    engine = build(family, dtype="float64", kv_memory=16 * 2 * 2 * 2 * 8 * 8 * 16)  # 16 blocks
    roomy = build(family, dtype="float64")
    for _ in range(6):  # preemption takes some luck
        requests = [
            make_request(f"{i}", random_prompt(rng, 20, 60), wish(rng, family), seed=i, max_tokens=24, ignore_eos=True)
            for i in range(8)
        ]
        found, expected = serve(engine, requests, rng), serve(roomy, requests)
        assert {name: [o.token for o in outputs] for name, outputs in found.items()} == {
            name: [o.token for o in outputs] for name, outputs in expected.items()
        }
        if engine.stats().preemptions:
            break
    assert engine.stats().preemptions > 0


def test_prompt_tokens_are_judged_under_the_vector(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = steered_family(tmp_path, seed=seed % 1000)
    prompt, coefficients = random_prompt(rng, 30, 60), {"calm": 1.3, "bone-simple": 0.4}
    request = make_request("r", prompt, coefficients, max_tokens=1, prompt_logprobs=True)
    judged = alone(build(family, max_batch_tokens=32), request)[0].prompt
    assert judged is not None
    expected = reference(family, coefficients, prompt)
    wanted = [expected[i, token].item() for i, token in enumerate(prompt[1:])]
    assert [token.logprob for token in judged] == pytest.approx(wanted, abs=1e-4)


def test_a_change_on_the_way_is_a_fresh_request(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = steered_family(tmp_path, seed=seed % 1000)
    engine = build(family)
    amounts, prompt = [1.5, -0.75, 0.0], random_prompt(rng, 5, 30)
    parts = [{"until": until, "coefficients": {"calm": c}} for until, c in zip((3, 8, None), amounts, strict=True)]
    plan = resolve(family, Steering.parse({"schedule": parts}))
    greedy = make_request("r", prompt, max_tokens=12, temperature=0.0, ignore_eos=True)
    found = [output.token for output in alone(engine, replace(greedy, plan=plan))]
    for start, stop, amount in zip((0, 3, 8), (3, 8, 12), amounts, strict=True):
        fresh = make_request(
            "r", [*prompt, *found[:start]], {"calm": amount}, max_tokens=stop - start, temperature=0.0, ignore_eos=True
        )
        assert found[start:stop] == [output.token for output in alone(engine, fresh)]
