import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import OF_PARAMETERS, write_mixture
from peft import PeftModel
from safetensors.torch import save_file
from tiny_models import VOCAB_SIZE, rewrite_tensors, write_full_member, write_tiny_base
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ladle.merging.checkpoints.architecture import Architecture, read_architecture
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.members.adapter import load_peft
from ladle.merging.members.full_member import FullMember, load_full
from ladle.merging.members.value_head import HEAD, load_value_head
from ladle.merging.merges.compress import REPORT, compress, truncated_svd


@pytest.fixture
def base(tmp_path: Path, seed: int) -> Path:
    return write_tiny_base(tmp_path / "base", "qwen2", seed, tie=True)


def opened(base: Path, member: Path) -> tuple[FullMember, CheckpointReader, Architecture]:
    reader, architecture = CheckpointReader(base), read_architecture(base)
    return load_full(member, "m", reader, architecture), reader, architecture


def test_a_low_rank_difference_is_kept_exactly(tmp_path: Path, base: Path, seed: int) -> None:
    path = write_full_member(tmp_path / "full", base, seed, rank=3)
    member, reader, architecture = opened(base, path)
    report = compress(member, reader, architecture, tmp_path / "lora", rank=8)
    # The checkpoint is float32, so its difference has rank 3 up to rounding, and the truncation stops near there.
    assert report.relative_error < 1e-5 and report.not_representable == () and report.lost_share == 0.0
    assert len(report.tensors) == 14
    adapter = load_peft(tmp_path / "lora", "m", architecture.linear)
    for module, delta in adapter.modules.items():
        name = f"{module}.weight"
        expected = member.reader.tensor(name).double() - reader.tensor(name).double()
        torch.testing.assert_close(delta.delta(torch.float64), expected, rtol=1e-4, atol=1e-6)


def test_peft_loads_the_result(tmp_path: Path, base: Path, seed: int) -> None:
    path = write_full_member(tmp_path / "full", base, seed, rank=3)
    compress(*opened(base, path), tmp_path / "lora", energy=0.99, base_name="tiny")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    tokens = torch.randint(0, VOCAB_SIZE, (2, 16), generator=torch.Generator().manual_seed(seed))
    served: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora")
    ours = {f"base_model.model.{name}": value for name, value in reference(base, tmp_path / "lora").items()}
    merged = served.merge_and_unload()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, ours[f"base_model.model.{name}"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.isfinite(merged(tokens).logits).all()


def reference(base: Path, lora: Path) -> dict[str, torch.Tensor]:
    """Base plus deltas as our own reader sees them."""
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for module, delta in load_peft(lora, "m", read_architecture(base).linear).modules.items():
        state[f"{module}.weight"] = state[f"{module}.weight"] + delta.delta()
    return state


def test_errors_are_measured_and_the_rest_is_reported(tmp_path: Path, base: Path, seed: int) -> None:
    member, reader, architecture = opened(base, write_full_member(tmp_path / "full", base, seed))
    report = compress(member, reader, architecture, tmp_path / "lora", rank=4)
    deltas = {name: member.reader.tensor(name).double() - reader.tensor(name).double() for name in reader}
    total = missed = lost = 0.0
    by_name = {tensor.name: tensor for tensor in report.tensors}
    for name, delta in deltas.items():
        squared = float(delta.square().sum())
        total += squared
        if name in by_name:
            spectrum = torch.linalg.svdvals(delta)
            error = math.sqrt(float(spectrum[4:].square().sum()) / squared)
            assert by_name[name].relative_error == pytest.approx(error, rel=1e-3) and by_name[name].rank == 4
            missed += squared * error**2
        else:
            lost += squared
    # Norms, biases and the (tied) embedding cannot be expressed by a LoRA of linear layers.
    assert {tensor.name for tensor in report.not_representable} == set(deltas) - set(by_name)
    assert "model.embed_tokens.weight" in {tensor.name for tensor in report.not_representable}
    assert report.lost_share == pytest.approx(lost / total, rel=1e-4)
    assert report.relative_error == pytest.approx(math.sqrt((missed + lost) / total), rel=1e-4)
    assert json.loads((tmp_path / "lora" / REPORT).read_text())["relative_error"] == report.relative_error
    smaller = compress(member, reader, architecture, tmp_path / "more", rank=16)
    assert smaller.relative_error < report.relative_error and smaller.parameters > report.parameters


def test_energy_chooses_the_smallest_rank(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    spectrum = torch.tensor([4.0, 2.0, 1.0, 0.5] + [0.0] * 16, dtype=torch.float64)  # squares 16, 4, 1, 0.25 of 21.25
    delta = u @ torch.diag(spectrum) @ v
    for energy, rank in ((0.7, 1), (0.76, 2), (0.94, 2), (0.95, 3), (0.99, 4), (1.0, 4)):
        b, a = truncated_svd(delta, None, energy)
        assert b.shape == (20, rank) and a.shape == (rank, 20)
        kept = 1 - float((delta - b @ a).square().sum() / delta.square().sum())
        assert kept >= energy - 1e-9
        torch.testing.assert_close(b.square().sum(), a.square().sum())
    assert truncated_svd(delta, 10, None)[0].shape == (20, 4)  # no rank is spent on nothing


def test_bad_requests_are_refused(tmp_path: Path, base: Path, seed: int) -> None:
    parts = opened(base, write_full_member(tmp_path / "full", base, seed))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "rank"),
        ({"rank": 2, "energy": 0.5}, "rank"),
        ({"rank": 0}, "rank"),
        ({"energy": 1.5}, "energy"),
        ({"rank": 1, "max_error": 0.01}, "max_error"),
    ]
    for options, field in cases:
        with pytest.raises(InputError) as caught:
            compress(*parts, tmp_path / "lora", **options)
        assert caught.value.field == field
    assert not (tmp_path / "lora").exists()
    same = opened(base, base)
    with pytest.raises(InputError, match="differs"):
        compress(*same, tmp_path / "lora", rank=2)
    with pytest.raises(InputError, match="out"):
        compress(*parts, base, rank=2)


def test_a_value_keeps_its_head(tmp_path: Path, seed: int) -> None:
    """A sequence classifier as transformers saves it: a trunk, a score and no output head."""
    base = write_tiny_base(tmp_path / "base", "llama", seed, tie=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    full = tmp_path / "full"
    classifier.save_pretrained(full)
    reader, architecture = CheckpointReader(base), read_architecture(base)
    member = load_full(full, "m", reader, architecture, headed=True)
    assert "lm_head.weight" not in member.reader
    with pytest.raises(FamilyError, match="lm_head"):
        load_full(full, "m", reader, architecture)
    head = load_value_head(full, architecture.hidden)
    assert torch.equal(head.weight, classifier.score.weight[0]) and head.bias == 0.0
    compress(member, reader, architecture, tmp_path / "lora", rank=4)
    kept = load_value_head(tmp_path / "lora", architecture.hidden)
    assert torch.equal(kept.weight, head.weight) and kept.bias == head.bias
    assert "lm_head" not in load_peft(tmp_path / "lora", "m", architecture.linear).modules
    # A head beside the checkpoint is kept as well, bias and all.
    rewrite_tensors(full / "model.safetensors", {"score.weight": None})
    save_file({"weight": head.weight, "bias": torch.tensor([0.25])}, full / HEAD)
    compress(load_full(full, "m", reader, architecture, headed=True), reader, architecture, tmp_path / "again", rank=4)
    assert load_value_head(tmp_path / "again", architecture.hidden).bias == 0.25


@pytest.mark.filterwarnings(OF_PARAMETERS)
def test_experts_become_what_peft_loads(tmp_path: Path, seed: int) -> None:
    """The weights of all experts and the router's, of other ranks each."""
    base = write_mixture(tmp_path / "base", "olmoe", seed)
    member, reader, architecture = opened(base, write_full_member(tmp_path / "full", base, seed))
    report = compress(member, ConvertedReader(reader, architecture.blueprint.conversion), architecture,
                      tmp_path / "lora", energy=0.97)  # fmt: skip
    assert {tensor.name for tensor in report.tensors} >= architecture.experts.weights.keys()
    served: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora")
    merged = served.double().merge_and_unload().state_dict()
    adapter = load_peft(tmp_path / "lora", "m", architecture.linear, architecture.module, experts=architecture.experts)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).state_dict()
    for name, delta in adapter.modules.items():
        name = name if name in plain else f"{name}.weight"
        torch.testing.assert_close(plain[name] + delta.delta(torch.float64), merged[name], rtol=1e-5, atol=1e-6)
    for tensor in report.tensors:
        left = merged[tensor.name] - member.reader.tensor(tensor.name).double()
        assert float(left.norm()) == pytest.approx(tensor.relative_error * tensor.norm, rel=1e-3, abs=1e-4)
