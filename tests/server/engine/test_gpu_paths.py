"""What the engine does on a GPU, on a CPU: the same calls, with kernels in Triton's interpreter."""

import random
from pathlib import Path

import pytest
import torch
from tiny_engine import build, family_of, fresh_seed, make_request, random_coefficients, random_prompt, serve

from ladle.kernels import dispatch, packed_linear
from ladle.merging.merge import merge_tensor


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that CPU tensors are on a GPU; returns the ops that then go through Triton, call by call."""
    pytest.importorskip("triton", reason="Triton is not on this platform")
    made: list[str] = []
    choose = dispatch._through_triton

    def note(op: str, *tensors: torch.Tensor) -> bool:
        chosen = choose(op, *tensors)
        made.extend([op] * chosen)
        return chosen

    monkeypatch.setattr(dispatch, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(dispatch, "_through_triton", note)
    # Weights are held as they are on a GPU.
    monkeypatch.setattr(packed_linear, "can_pack", lambda: False)
    monkeypatch.setattr(packed_linear, "can_pack_half", lambda: False)
    return made


@pytest.mark.parametrize("arch", ["llama", "gemma2"])  # the latter has windows and caps
def test_the_same_tokens_through_kernels(arch: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, arch)
    requests = []
    for index in range(5):
        coefficients = random_coefficients(rng, list(family.low_rank)) if index else None
        prompt = random_prompt(rng, 1, 40)
        requests.append(make_request(f"{index}", prompt, coefficients, max_tokens=4, temperature=index % 2))
    expected = serve(build(family, compiled_layers=False), requests)
    calls = request.getfixturevalue("calls")
    found = serve(build(family, compiled_layers=False), requests)
    for name, outputs in expected.items():
        assert [output.token for output in found[name]] == [output.token for output in outputs]
    assert {"gated_lora", "paged_attention"} <= set(calls)


def test_a_merge_in_one_pass(calls: list[str]) -> None:
    base, one, two = torch.randn(3, 30, 20, generator=torch.Generator().manual_seed(fresh_seed()))
    out = torch.empty_like(base)
    merge_tensor(out, base, [(1.75, one), (-0.5, two)])
    assert calls == ["merge_weights"]
    assert torch.allclose(out, base + 1.75 * (one - base) - 0.5 * (two - base), atol=1e-5)


def test_kernels_can_be_left_out_by_name(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base, one = torch.randn(2, 30, 20, generator=torch.Generator().manual_seed(fresh_seed()))
    out = torch.empty_like(base)
    for left_out in ("paged_attention,merge_weights", "all"):
        monkeypatch.setenv("LADLE_TORCH_KERNELS", left_out)
        merge_tensor(out, base, [(0.5, one)])
        assert torch.allclose(out, (base + one) / 2, atol=1e-6)
    assert not calls
    # What Triton has no kernel for, plain torch does.
    monkeypatch.delenv("LADLE_TORCH_KERNELS")
    merge_tensor(out.double(), base.double(), [(0.5, one)])
    assert not calls
