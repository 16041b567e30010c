"""The engine's forward over its KV pool against transformers' forward over its own cache, in float64."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from tiny_engine import (
    Recorder,
    build,
    family_of,
    make_request,
    merged_state,
    random_coefficients,
    random_prompt,
    serve,
)
from tiny_models import ARCHITECTURES, rewrite_json, write_lora_member, write_tiny_base
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import eager_mask

from ladle.merging.bank.bank import Bank
from ladle.merging.family.family import Family, load_family
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine import engine_config
from ladle.server.engine.engine import Engine
from ladle.server.engine.forward.loaded_model import context_limit

TOLERANCE = 1e-9
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 11},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1},
    "phi3": {"sliding_window": 16},
    "gemma2": {"sliding_window": 5, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 33},
}
CASES = [(arch, {}) for arch in ARCHITECTURES] + list(SLIDING.items())


def _exact_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **options: Any
) -> tuple[Tensor, None]:
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if options.get("softcap"):
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    return (torch.softmax(scores + attention_mask, -1) @ value).transpose(1, 2), None


AttentionInterface.register("exact", _exact_attention)
AttentionMaskInterface.register("exact", eager_mask)


class _ExactNorm(torch.nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.scale = norm.weight.detach() + (1 if type(norm).__name__.startswith("Gemma") else 0)
        self.eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps)


def reference_model(family: Family, coefficients: Mapping[str, float], exact: bool = True) -> Any:
    """transformers' own model on written-out weights.

    Coefficients are what the engine's key of them says (rounded to 2**-20). transformers' norms and its softmax round
    to float32 even in a float64 model; ``exact`` replaces these two by the formulas.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        family.base_path, dtype=torch.float64, attn_implementation="exact" if exact else "eager"
    ).eval()
    quantised = WeightsKey.of(family.base_revision, coefficients).coefficients()
    if model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.load_state_dict(merged_state(model, Bank(list(family.low_rank.values())), quantised))
    for path, module in list(model.named_modules()) if exact else ():
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _ExactNorm(module))
    return model


@torch.inference_mode()
def reference_logits(model: Any, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """[len(output), vocabulary]: what each token of ``output`` is drawn from: one prefill, then token by token."""
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([list(prompt)])
    rows = []
    for token in output:
        rows.append(model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1])
        ids = torch.tensor([[token]])
    return torch.stack(rows)


def compare(engine: Engine, family: Family, rng: random.Random, requests: int = 6, longest: int = 90) -> float:
    """Serve random requests, some traced, arriving at random; returns the largest difference of any logit."""
    recorder = Recorder(engine)
    sent, coefficients = [], {}
    for index in range(requests):
        name = f"r{index}"
        coefficients[name] = random_coefficients(rng, family.mergeable) if rng.random() < 0.8 else {}
        prompt = random_prompt(rng, 1, longest)
        options = {"max_tokens": rng.randint(1, 24), "seed": rng.getrandbits(40), "trace": rng.random() < 0.3}
        sent.append(make_request(name, prompt, coefficients[name], ignore_eos=True, **options))
    outputs = serve(engine, sent, rng)
    worst = 0.0
    base = reference_model(family, {})
    for request in sent:
        name = request.request_id
        tokens = [output.token for output in outputs[name]]
        ours = torch.stack([recorder.logits[name][i] for i in range(len(tokens))])
        references = [reference_model(family, coefficients[name])] + [base] * (len(request.plan.sources) - 1)
        for source, model in enumerate(references):
            expected = reference_logits(model, request.prompt, tokens)
            assert (ours[:, source] - expected).isfinite().all()
            worst = max(worst, (ours[:, source] - expected).abs().max().item())
    return worst


@pytest.mark.parametrize(("arch", "options"), CASES, ids=[f"{arch}{'-sliding' if o else ''}" for arch, o in CASES])
def test_paged_forward_equals_transformers(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Random chunks (a small token budget), decode beside prefill, mixed weights, traced lanes, windows shorter than
    the prompt."""
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, arch, seed % 1000, policies=False, **options)
    engine = build(family, dtype="float64", max_sequences=4, max_batch_tokens=40 + rng.randrange(40))
    assert compare(engine, family, rng) <= TOLERANCE


@pytest.mark.parametrize(("arch", "options"), CASES, ids=[f"{arch}{'-sliding' if o else ''}" for arch, o in CASES])
def test_paged_forward_is_close_to_unchanged_transformers(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, arch, seed % 1000, policies=False, **options)
    engine = build(family)
    recorder = Recorder(engine)
    coefficients = random_coefficients(rng, family.mergeable)
    request = make_request("r", random_prompt(rng, 20, 60), coefficients, max_tokens=6, ignore_eos=True)
    (outputs,) = serve(engine, [request]).values()
    expected = reference_logits(
        reference_model(family, coefficients, exact=False), request.prompt, [output.token for output in outputs]
    )
    ours = torch.stack([recorder.logits["r"][step][0] for step in range(6)])
    assert (ours.double() - expected).abs().max().item() <= 2e-4 * max(1.0, expected.abs().max().item())


def test_paged_forward_under_preemption(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "llama", seed % 1000)
    engine = build(family, dtype="float64", kv_memory=16 * 2 * 2 * 2 * 8 * 8 * 16)  # 16 blocks
    for _ in range(6):  # preemption takes some luck
        assert compare(engine, family, rng, requests=10, longest=70) <= TOLERANCE
        if engine.stats().preemptions:
            break
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("tie", [True, False])
def test_adapter_on_the_output_head(tie: bool, tmp_path: Path) -> None:
    """The head reads only the tokens whose logits are wanted, so its coefficient rows are not those of all tokens."""
    rng = random.Random(seed := fresh_seed())
    root = family_of(tmp_path, "llama", seed % 1000, tie=tie).root
    for name in ("bone-positive", "bone-simple"):
        write_lora_member(root / "adapters" / name, root / "base", seed % 999, target_modules=["lm_head", "v_proj"])
    family = load_family(root)
    engine = build(family, dtype="float64", max_sequences=4, max_batch_tokens=48)
    assert compare(engine, family, rng) <= TOLERANCE


def test_long_prompt_in_many_chunks(tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "gemma3_text", seed % 1000, policies=False)
    engine = build(family, dtype="float64", max_sequences=2, max_batch_tokens=37)
    assert compare(engine, family, rng, requests=2, longest=450) <= TOLERANCE


def test_bfloat16_keeps_rotary_frequencies_and_coefficients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with bfloat16 instructions: weights and activations are rounded, positions are not."""

    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: True)
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "llama", seed % 1000)
    engine = build(family, dtype="bfloat16")
    assert engine.models.activation_dtype == torch.bfloat16
    model: Any = engine.models.base.model
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert engine.scheduler.table.coefficients.dtype == torch.float32
    recorder = Recorder(engine)
    coefficients = {"bone-positive": 0.7, "bone-simple": 0.3}
    prompt = random_prompt(rng, 400, 400)
    (outputs,) = serve(engine, [make_request("r", prompt, coefficients, max_tokens=4, ignore_eos=True)]).values()
    expected = reference_logits(reference_model(family, coefficients), prompt, [o.token for o in outputs])
    for step in range(4):
        ours = recorder.logits["r"][step][0].double()
        correlation = torch.corrcoef(torch.stack((ours, expected[step])))[0, 1].item()
        assert correlation > 0.99, correlation


def test_yarn_as_model_cards_add_it_raises_the_context(tmp_path: Path, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", "qwen2", seed, max_position_embeddings=32768)
    # Qwen2.5's card: this is added to config.json, and max_position_embeddings stays.
    rewrite_json(
        base / "config.json", rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    )
    config = AutoConfig.from_pretrained(base)
    assert config.max_position_embeddings == 32768
    assert context_limit(config, 10**9) == 4 * 32768
    assert context_limit(config, 1000) == 1000
    rewrite_json(base / "config.json", max_position_embeddings=131072)
    assert context_limit(AutoConfig.from_pretrained(base), 10**9) == 131072, "a config that says it already"


def test_longrope_is_limited_to_its_original_length(tmp_path: Path) -> None:
    """Beyond it one long sequence would change the frequencies of all others in the batch."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    }  # fmt: skip
    options = {"rope_parameters": rope, "max_position_embeddings": 256, "original_max_position_embeddings": 64}
    rng = random.Random(seed := fresh_seed())
    family = family_of(tmp_path, "phi3", seed % 1000, policies=False, **options)
    engine = build(family, dtype="float64", max_sequences=4)
    assert engine.max_context == 64
    assert compare(engine, family, rng, longest=38) <= TOLERANCE
