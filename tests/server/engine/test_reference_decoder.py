"""The float64 reference itself, against transformers, PEFT and cases worked out by hand."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import reference_rules as rules
import torch
from guided_folder import KINDS, write_guided_family
from peft import PeftModel
from reference_decoder import ReferenceDecoder
from reference_text import View
from reference_weights import ReferenceWeights
from safetensors.torch import load_file
from seeds import fresh_seed
from tiny_engine import random_prompt
from torch import Tensor
from transformers import AutoModelForCausalLM

AS_PUBLISHED: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "eager"}
"""Other kinds of attention leave out Gemma 2's cap on scores in transformers 5.17."""
LOOSE = 2e-5  # transformers' norms and its softmax round to float32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_guided_family(tmp_path_factory.mktemp("family"), "qwen2", 4)


@pytest.fixture(scope="module")
def decoder(root: Path) -> ReferenceDecoder:
    return ReferenceDecoder(root)


def prompts_of(rng: random.Random, *views: View) -> dict[View, tuple[int, ...]]:
    return {view: random_prompt(rng, 3, 20) for view in (None, ("prompt", ""), *views)}


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- rules, by hand ---------------------------------------------------------------------------------------------------


def test_soups_by_hand() -> None:
    # methods 2.2: beta 0.7, n = 2, mu = (1, 0) gives (1.75, -0.75); a row of B is its backbone.
    assert rules.solve(rules.soup_matrix(0.7, 2), [1, 0]) == pytest.approx([1.75, -0.75])
    assert rules.solve(rules.soup_matrix(0.6, 2), [1, 0]) == pytest.approx([3, -2])
    assert rules.solve([[0.8, 0.2], [0.5, 0.5]], [0.5, 0.5]) == pytest.approx([0, 1])
    beta, mu, q = 0.6, [0.5, 0.3, 0.2], 0.2
    assert rules.solve(rules.soup_matrix(beta, 3), mu) == pytest.approx([(m - q) / (beta - q) for m in mu])
    assert rules.normalised({"b": 3, "a": 1}, ["a", "b", "c"]) == [0.25, 0.75, 0]


def test_divergences_by_hand() -> None:
    p, q = rows([0.5, 0.25, 0.25]), rows([0.2, 0.2, 0.6])
    terms = [(0.25, p.log()), (0.75, q.log())]
    assert torch.allclose(rules.linear(terms).exp(), p**0.25 * q**0.75)
    assert torch.allclose(rules.harmonic(terms, 1.0).exp(), 1 / (0.25 / p + 0.75 / q))
    assert torch.allclose(rules.harmonic(terms, 2.0).exp(), (0.25 / p**2 + 0.75 / q**2) ** -0.5)
    assert torch.allclose(rules.harmonic([(1.0, p.log()), (0.0, q.log())], 0.3).exp(), p)


def test_masks_and_candidates_by_hand() -> None:
    p = rows([0.05, 0.5, 0.15, 0.3]).log()
    assert rules.best(p, 2).tolist() == [[1, 3]]
    assert rules.nucleus(p, 0.5).tolist() == [[False, True, False, False]]
    assert rules.nucleus(p, 0.51).tolist() == [[False, True, False, True]]
    assert rules.nucleus(p, 0.9).tolist() == [[False, True, True, True]]
    assert rules.plausible(p, 0.2).tolist() == [[False, True, True, True]]
    ids, values = torch.tensor([[1, 3]]), rows([2.0, 4.0])
    free = rules.add_values(p, ids, values, centred=True, restricted=False)
    assert torch.allclose(free - p, rows([0, -1, 0, 1]))
    kept = rules.add_values(p, ids, values, centred=False, restricted=True)
    assert kept.isinf().tolist() == [[True, False, True, False]]
    assert torch.allclose(kept[:, [1, 3]], p[:, [1, 3]] + values)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "phi3"])
def test_weights_equal_those_of_peft_and_transformers(arch: str, tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    root = write_guided_family(tmp_path, arch, seed % 1000, full=("bone-simple",))
    weights = ReferenceWeights(root)
    ids = torch.tensor([random_prompt(rng, 12, 30)])
    for name in ("bone-positive", "only-simple", "tuned-positive"):
        folder = next(root / part / name for part in ("adapters", "values") if (root / part / name).is_dir())
        base: Any = AutoModelForCausalLM.from_pretrained(root / "base", **AS_PUBLISHED)
        with torch.inference_mode():
            expected = PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=ids).logits
        logits, _ = weights.run("", {name: 1.0}, ids.tolist())
        assert (logits - expected).abs().max() < LOOSE * expected.abs().max(), name
    full: Any = AutoModelForCausalLM.from_pretrained(root / "adapters/bone-simple", **AS_PUBLISHED).eval()
    with torch.inference_mode():
        expected = full(input_ids=ids).logits
        last = full.model(input_ids=ids).last_hidden_state
    logits, hidden = weights.run("", {"bone-simple": 1.0}, ids.tolist())
    assert (logits - expected).abs().max() < LOOSE * expected.abs().max()
    assert (hidden - last).abs().max() < LOOSE * last.abs().max(), "after the final norm"


def test_pblora_is_its_formula(root: Path, decoder: ReferenceDecoder) -> None:
    """s [B1 W1 A1 + B2 W2(mu) A2] x, factor by factor."""
    rng = random.Random(fresh_seed())
    config = json.loads((root / "values/arm/adapter_config.json").read_text())
    tensors = {
        name: tensor.double() for name, tensor in load_file(root / "values/arm/adapter_model.safetensors").items()
    }
    r1, r2 = config["r1"], config["r2"]
    mu = [share := rng.random(), 1 - share]
    coefficients = {"arm": 1.0, **{f"arm@{name}": weight for name, weight in zip(decoder.objectives, mu, strict=True)}}
    stem = "base_model.model.model.layers.1.mlp.up_proj.pblora_"
    a, b, w1, w2 = (tensors[stem + part] for part in ("A", "B", "W1", "W2"))
    mixed = torch.tensor([[sum(mu[i] * w2[i, r2 * row + column] for i in range(2)) for column in range(r2)]
                          for row in range(r2)]).double()  # fmt: skip
    x = torch.randn(a.shape[1], dtype=torch.float64)
    expected = b[:, :r1] @ (w1 @ (a[:r1] @ x)) + b[:, r1:] @ (mixed @ (a[r1:] @ x))
    parts = [(decoder.weights.members[name][1], share) for name, share in coefficients.items()]
    delta = sum(share * deltas["model.layers.1.mlp.up_proj.weight"] for deltas, share in parts)
    assert torch.allclose(delta @ x, expected * config["lora_alpha"] / r2)


# -- methods ----------------------------------------------------------------------------------------------------------


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal distributions at every position."""
    return torch.allclose(torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1), rtol=0, atol=1e-12)


def test_methods_that_come_to_one_model(decoder: ReferenceDecoder) -> None:
    rng = random.Random(fresh_seed())
    prompts, output = prompts_of(rng), random_prompt(rng, 3, 6)

    def scores(method: str, *, corner: int | None = None, **options: Any) -> Tensor:
        weights = [1.0, 0.0] if corner == 0 else [0.0, 1.0] if corner == 1 else [0.4, 0.6]
        preference = dict(zip(decoder.objectives, weights, strict=True))
        return decoder.scores({"method": method, "preference": preference, **options}, prompts, output)

    def member(**coefficients: float) -> Tensor:
        return scores("custom", terms=[{"source": coefficients or "base", "weight": 1.0}])

    base, simple = member(), scores("custom", terms=[{"source": "only-simple", "weight": 1.0}])
    assert same(scores("base"), base) and not same(simple, base)
    assert same(scores("rewarded_soup", corner=1), simple)
    for divergence in ("reverse_kl", "jsd", "forward_kl", "alpha"):
        assert same(scores("mod", corner=1, divergence=divergence, alpha=0.7), simple)
    assert not same(scores("mod", divergence="forward_kl"), scores("mod"))
    assert same(scores("bone_soup", corner=1), member(**{"bone-positive": -0.75, "bone-simple": 1.75}))
    assert same(scores("cfg", strength=1.0), base) and not same(scores("cfg", strength=1.2), base)
    assert same(scores("proxy_tuning", corner=0), member(**{"tuned-positive": 1.0}))
    assert same(scores("genarm", corner=0, strength=0.0), base)
    assert same(scores("genarm", corner=0, normalize="sum") * 2, base + member(**{"tuned-positive": 1.0}))
    whole = {"candidates": decoder.weights.vocabulary}
    assert same(scores("pad", corner=0, **whole), member(**{"tuned-positive": 1.0}))
    for value in ("implicit", "explicit", "both"):
        for combine in ("merged", "ensemble"):
            assert same(scores("mage", value=value, combine=combine, strength=0.0), scores("bone_soup"))
    for method in ("args", "fudge", "cd", "vas"):
        assert same(scores(method, strength=0.0, **whole), base)
    # Values of one objective are alone either way.
    assert same(scores("args", corner=1), scores("args", corner=1, combine="merged"))
    shifted = scores("vas", corner=1, **whole) - scores("cd", corner=1, **whole)
    assert torch.allclose(shifted, shifted[:, :1].expand_as(shifted), atol=1e-9), "centring is a constant a row"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_on_what_came_before_only(kind: str, tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    decoder = ReferenceDecoder(write_guided_family(tmp_path, "llama", seed % 1000, kind=kind))
    entries = decoder.manifest["values"]
    prompts = prompts_of(rng, *(("system", entry["system"]) for entry in entries if "system" in entry))
    for method in ("proxy_tuning", "dexperts", "vas", "contrastive"):
        steering = {"method": method, "preference": dict.fromkeys(decoder.objectives, 0.5), "strength": 0.8}
        output = decoder.greedy(steering, prompts, 5)
        whole = decoder.scores(steering, prompts, output)
        for length in range(6):
            one = decoder.scores(steering, prompts, output[:length], length)
            assert torch.allclose(one[0], whole[length], atol=1e-12)
        logprobs = decoder.logprobs(steering, prompts, output)
        assert logprobs.tolist() == torch.log_softmax(whole[:-1], -1).max(-1).values.tolist()
        assert all(-math.log(decoder.weights.vocabulary) < value <= 0 for value in logprobs.tolist())
