"""What the engine does on a GPU; where there is none, the same calls on the CPU, kernels in Triton's interpreter."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from tiny_engine import build, family_of, make_request, random_coefficients, random_prompt, serve
from triton_interpreter import patch_once_a_launch

from ladle.benchmarks.gpu.decode_shapes import settings
from ladle.benchmarks.random_family import write_random_family
from ladle.guidance.registry import resolve
from ladle.kernels import dispatch
from ladle.kernels.cpu import packed_linear
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.streaming_merge import merge_tensor
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sampling_params import SamplingParams

CUDA = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if CUDA else []
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops that go through Triton from here on, call by call; all of them do, as if CPU tensors were on a GPU."""
    pytest.importorskip("triton", reason="Triton is not on this platform")
    made: list[str] = []
    choose = dispatch._through_triton

    def note(op: str, *tensors: torch.Tensor) -> bool:
        chosen = choose(op, *tensors)
        made.extend([op] * chosen)
        return chosen

    monkeypatch.setattr(dispatch, "_through_triton", note)
    if not CUDA:
        patch_once_a_launch(monkeypatch)
        monkeypatch.setattr(dispatch, "on_gpu", lambda tensor: True)
        # Weights are held as they are on a GPU.
        monkeypatch.setattr(packed_linear, "can_pack", lambda: False)
    return made


@pytest.fixture
def engines(request: pytest.FixtureRequest) -> Iterator[Callable[[Family], tuple[Engine, Callable[[], Engine]]]]:
    """An engine on the CPU, and what makes one on the GPU once the other has done its work."""
    made: list[Engine] = []

    def on_gpu(family: Family) -> Engine:
        request.getfixturevalue("calls")
        made.append(build(family, compiled_layers=False, device="cuda" if CUDA else "cpu"))
        return made[-1]

    def both(family: Family) -> tuple[Engine, Callable[[], Engine]]:
        made.append(build(family, compiled_layers=False))
        return made[-1], lambda: on_gpu(family)

    yield both
    for engine in made:
        engine.shutdown()


@pytest.mark.parametrize("arch", ["llama", "gemma2"])  # the latter has windows and caps
def test_the_same_tokens_through_kernels(arch: str, tmp_path: Path, engines: Any, request: Any) -> None:
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, arch)
    requests = []
    for index in range(4):
        coefficients = random_coefficients(rng, list(family.low_rank)) if index else None
        prompt = random_prompt(rng, 1, 40) if index else random_prompt(rng, 65, 90)  # a longer one beside short ones
        requests.append(make_request(f"{index}", prompt, coefficients, max_tokens=3, temperature=index % 2))
    _compare(requests, *engines(family))
    assert {"gated_lora", "paged_attention"} <= set(request.getfixturevalue("calls"))


def test_the_same_tokens_under_guidance_and_routing(tmp_path: Path, engines: Any) -> None:
    rng = random.Random(fresh_seed())
    family = load_family(write_random_family(tmp_path / "family", SHAPE, torch.float32))
    requests = []
    for index, (name, steering) in enumerate(settings(family).items()):
        prompt = random_prompt(rng, 1, 20)
        plan = resolve(family, steering(index))
        sampling = SamplingParams(max_tokens=3, temperature=float(index % 2), seed=index, ignore_eos=True)
        requests.append(GenerationRequest(name, prompt, plan, sampling, dict.fromkeys(plan.views, prompt)))
    _compare(requests, *engines(family))


def _compare(requests: list[GenerationRequest], on_cpu: Engine, on_gpu: Callable[[], Engine]) -> None:
    expected = serve(on_cpu, requests)
    found = serve(on_gpu(), requests)
    for name, outputs in expected.items():
        assert [output.token for output in found[name]] == [output.token for output in outputs], name
        for one, other in zip(found[name], outputs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3), name


def test_a_merge_in_one_pass(calls: list[str]) -> None:
    base, one, two = torch.randn(3, 30, 20, generator=torch.Generator().manual_seed(fresh_seed()))
    out = torch.empty_like(base, device="cuda" if CUDA else "cpu")
    merge_tensor(out, base, [(1.75, one), (-0.5, two)])
    assert calls == ["merge_weights"]
    assert torch.allclose(out.cpu(), base + 1.75 * (one - base) - 0.5 * (two - base), atol=1e-5)


def test_heads_too_large_for_the_kernel_go_through_torch(calls: list[str]) -> None:
    device = "cuda" if CUDA else "cpu"
    generator = torch.Generator(device).manual_seed(fresh_seed())
    position, table = torch.tensor([4], device=device), torch.tensor([[0]], device=device)
    for dim in (dispatch.LARGEST_HEAD, dispatch.LARGEST_HEAD + 8):
        query = torch.randn(1, 2, dim, generator=generator, device=device)
        pool = torch.randn(16, 2, 1, dim, generator=generator, device=device)
        found = dispatch.paged_attention(query, pool, table, position, 16, 0.1)
        weights = torch.softmax(0.1 * query[0] @ pool[:5, 0, 0].T, dim=-1)
        assert torch.allclose(found[0], weights @ pool[:5, 1, 0], atol=1e-4)
    assert calls == ["paged_attention"]


def test_kernels_can_be_left_out_by_name(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base, one = torch.randn(2, 30, 20, generator=torch.Generator().manual_seed(fresh_seed()))
    out = torch.empty_like(base, device="cuda" if CUDA else "cpu")
    for left_out in ("paged_attention,merge_weights", "all"):
        monkeypatch.setenv("LADLE_TORCH_KERNELS", left_out)
        merge_tensor(out, base, [(0.5, one)])
        assert torch.allclose(out.cpu(), (base + one) / 2, atol=1e-6)
    assert not calls
    # What Triton has no kernel for, plain torch does.
    monkeypatch.delenv("LADLE_TORCH_KERNELS")
    merge_tensor(out.double(), base.double(), [(0.5, one)])
    assert not calls
