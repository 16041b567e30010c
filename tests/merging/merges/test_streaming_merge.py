from pathlib import Path

import pytest
import torch
from tiny_models import write_family

from ladle.merging.family.family import Family, load_family
from ladle.merging.members.adapter import LowRank
from ladle.merging.merges import streaming_merge as merge_module
from ladle.merging.merges.streaming_merge import Merge, Scratch, merge_tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=[7, 64, 1 << 18])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Merges must not depend on where tensors are cut."""
    monkeypatch.setattr(merge_module, "CHUNK", request.param)
    return int(request.param)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(13,), (9, 11), (3, 5, 4), (1,)])
@pytest.mark.parametrize("coefficients", [(1.75, -0.75, 0.0), (0.2, 0.3, 0.1), (2.0, -0.5, -0.5), (0.4, 0.35, 0.25)])
def test_full_members_equal_the_formula(
    shape: tuple[int, ...], coefficients: tuple[float, ...], chunk: int, seed: int
) -> None:
    base, *members = (draw(seed + i, *shape) for i in range(4))
    out = torch.full(shape, torch.nan, dtype=torch.float64)
    merge_tensor(out, base, list(zip(coefficients, members, strict=True)))
    expected = base + sum(c * (member - base) for c, member in zip(coefficients, members, strict=True))
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("chunk_size", [7, 64, 1 << 18])
def test_low_rank_and_full_members_mix(chunk_size: int, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(merge_module, "CHUNK", chunk_size)
    base, full = draw(seed, 17, 12), draw(seed + 1, 17, 12)
    low = [LowRank(draw(seed + 2 + r, r, 12), draw(seed + 9 + r, 17, r), 0.5 * r) for r in (1, 3)]
    out = torch.empty_like(base)
    merge_tensor(out, base, [(0.3, full)], [(-0.7, low[0]), (1.4, low[1])])
    expected = base + 0.3 * (full - base) - 0.7 * low[0].delta(torch.float64) + 1.4 * low[1].delta(torch.float64)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    merge_tensor(out, base, [], [(1.0, low[1])])
    torch.testing.assert_close(out, base + low[1].delta(torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("base_dtype", FLOATS)
@pytest.mark.parametrize("member_dtype", FLOATS)
@pytest.mark.parametrize("out_dtype", FLOATS)
def test_any_dtypes_meet_in_float32_or_better(
    base_dtype: torch.dtype, member_dtype: torch.dtype, out_dtype: torch.dtype, seed: int
) -> None:
    base, one, two = (draw(seed + i, 40, 30) for i in range(3))
    base, one, two = base.to(base_dtype), one.to(member_dtype), two.to(member_dtype)
    out = torch.empty(40, 30, dtype=out_dtype)
    merge_tensor(out, base, [(1.6, one), (-0.9, two)])
    exact = base.double() + 1.6 * (one.double() - base.double()) - 0.9 * (two.double() - base.double())
    # One rounding to the output's dtype, whose smallest numbers have a spacing of their own, and some of float32 on the
    # way: nothing of the inputs' dtypes.
    out_info = torch.finfo(out_dtype)
    tolerance = out_info.eps * (exact.abs() + out_info.tiny)
    tolerance += 4e-6 if torch.float64 not in (base_dtype, out_dtype) else 1e-12
    assert ((out.double() - exact).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_identities_hold_to_the_last_bit(dtype: torch.dtype, seed: int) -> None:
    base, member = draw(seed, 50, 7).to(dtype), draw(seed + 1, 50, 7).to(dtype)
    out = torch.empty_like(base)
    merge_tensor(out, base, [(1.0, member)])
    assert torch.equal(out, member)
    merge_tensor(out, base, [])
    assert torch.equal(out, base)


def test_integers_are_copied() -> None:
    base = torch.arange(5)
    out = torch.empty_like(base)
    merge_tensor(out, base, [(0.5, base + 7)])
    assert torch.equal(out, base)


def test_scratch_memory_is_reused(seed: int) -> None:
    scratch = Scratch()
    base, member = draw(seed, 300).bfloat16(), draw(seed + 1, 300).bfloat16()
    out = torch.empty_like(base)
    merge_tensor(out, base, [(0.5, member)], scratch=scratch)
    before = scratch.like(0, out, torch.float32).data_ptr()
    merge_tensor(out, base, [(0.4, member)], scratch=scratch)
    assert scratch.like(0, out, torch.float32).data_ptr() == before


@pytest.fixture
def family(tmp_path: Path, seed: int) -> Family:
    return load_family(write_family(tmp_path, "qwen2", seed, n=2, full=("bone-simple", "only-simple")))


def test_a_family_merges_every_tensor(family: Family) -> None:
    coefficients = {"bone-positive": 0.9, "bone-simple": 1.4, "only-simple": -0.6}
    merge = Merge.of(family)
    out = {name: spec.empty() for name, spec in merge.layout(coefficients, torch.float64).items()}
    merge.into(out, coefficients)
    assert set(out) == set(family.base.names)
    low = family.low_rank["bone-positive"].modules
    for name, tensor in out.items():
        base = family.base.tensor(name).double()
        expected = base.clone()
        for member in ("bone-simple", "only-simple"):
            expected += coefficients[member] * (family.full[member].reader.tensor(name).double() - base)
        if (module := name.removesuffix(".weight")) in low:
            expected += 0.9 * low[module].delta(torch.float64)
        torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-9)
    for name, tensor in merge.tensors(coefficients, torch.float64):
        assert torch.equal(tensor, out[name])


def test_float64_noise_does_not_cost_the_identity(family: Family) -> None:
    solved = {"bone-simple": 1.0 - 2.2e-16, "only-simple": 1.1e-16, "bone-positive": -3e-17}
    for name, tensor in Merge.of(family).tensors(solved):
        assert torch.equal(tensor, family.full["bone-simple"].reader.tensor(name))


def test_an_unknown_member_is_an_error(family: Family) -> None:
    with pytest.raises(KeyError, match="nobody"):
        Merge.of(family).layout({"nobody": 1.0})
