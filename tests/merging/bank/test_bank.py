"""Stacked factors against the written-out sum of deltas."""

import random
from pathlib import Path

import pytest
import torch
from seeds import fresh_seed

from ladle.merging.bank.bank import Bank
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import LowRank, LowRankMember

OUT = {"q": 12, "k": 8, "v": 8}
INNER = 10


def _member(name: str, rng: random.Random, paths: list[str]) -> LowRankMember:
    modules = {}
    for path in paths:
        rank = rng.randint(1, 5)
        dtype = rng.choice([torch.float32, torch.bfloat16, torch.float64])
        a, b = torch.randn(rank, INNER).to(dtype), torch.randn(OUT[path], rank).to(dtype)
        modules[path] = LowRank(a, b, rng.uniform(-2, 2))
    return LowRankMember(name, Path("/nowhere"), modules)


def test_stack_equals_the_sum_of_deltas() -> None:
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    for _ in range(10):
        members = [_member(f"m{i}", rng, rng.sample(list(OUT), rng.randint(1, 3))) for i in range(rng.randint(1, 5))]
        bank = Bank(members)
        coefficients = torch.tensor([rng.choice([0.0, 1.0, rng.uniform(-2, 2)]) for _ in members], dtype=torch.float64)
        for paths in (["q"], ["v", "q"], list(OUT)):
            factors = bank.stack(paths, [OUT[path] for path in paths], torch.float64)
            expected = torch.cat(
                [
                    sum(
                        (
                            c * m.modules[path].scale * m.modules[path].b.double() @ m.modules[path].a.double()
                            for m, c in zip(members, coefficients, strict=True)
                            if path in m.modules
                        ),
                        torch.zeros(OUT[path], INNER, dtype=torch.float64),
                    )
                    for path in paths
                ]
            )
            if factors is None:
                assert not any(path in member.modules for member in members for path in paths)
                continue
            assert factors.shrink.shape[0] == factors.expand.shape[1] == factors.columns.shape[0]
            merged = factors.expand @ (coefficients[factors.columns][:, None] * factors.shrink)
            torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


def test_untouched_modules_have_no_factors() -> None:
    rng = random.Random(fresh_seed())
    bank = Bank([_member("m", rng, ["q"])])
    assert bank.stack(["k", "v"], [8, 8], torch.float32) is None
    assert Bank([]).stack(["q"], [12], torch.float32) is None
    assert Bank([]).modules == frozenset() and bank.modules == {"q"}


def test_scales_are_folded_before_rounding() -> None:
    """bfloat16 rounds scale * B once, not the scale and B apart."""
    torch.manual_seed(fresh_seed())
    low_rank = LowRank(torch.randn(3, INNER), torch.randn(12, 3), 0.3333)
    factors = Bank([LowRankMember("m", Path("/nowhere"), {"q": low_rank})]).stack(["q"], [12], torch.bfloat16)
    assert factors is not None
    assert torch.equal(factors.expand, (low_rank.b.double() * 0.3333).bfloat16())


def test_index_follows_the_order_of_members() -> None:
    rng = random.Random(fresh_seed())
    bank = Bank([_member(name, rng, ["q"]) for name in ("z", "a", "m")])
    assert bank.members == ("z", "a", "m")
    assert bank.index == {"z": 0, "a": 1, "m": 2}
    factors = bank.stack(["q"], [12], torch.float32)
    assert factors is not None and factors.columns.tolist() == sorted(factors.columns.tolist())
    with pytest.raises(ValueError):
        bank.stack(["q", "k"], [12], torch.float32)


def test_banks_of_several_models_share_one_table_of_coefficients() -> None:
    """With ``names`` the columns are those of the table, whoever is in this bank."""
    rng = random.Random(seed := fresh_seed())
    torch.manual_seed(seed)
    members = [_member(name, rng, list(OUT)) for name in "abcde"]
    names = [member.name for member in members]
    row = torch.randn(len(names), dtype=torch.float64)
    mine = rng.sample(members, 3)
    bank, alone = Bank(mine, names), Bank(mine)
    assert bank.members == tuple(names) and alone.members == tuple(member.name for member in mine)
    assert bank.modules == alone.modules
    for path, rows in OUT.items():
        factors = bank.stack([path], [rows], torch.float64)
        own = alone.stack([path], [rows], torch.float64)
        assert factors is not None and own is not None
        picked = torch.stack([row[names.index(member.name)] for member in mine])
        torch.testing.assert_close(
            factors.expand @ (row[factors.columns][:, None] * factors.shrink),
            own.expand @ (picked[own.columns][:, None] * own.shrink),
            rtol=1e-12,
            atol=1e-12,
        )
    assert Bank([], names).stack(["q"], [12], torch.float64) is None


def test_factors_beyond_the_dtype_are_refused() -> None:
    """Infinity times the coefficient 0 would be NaN in rows that never asked for the member."""
    rng = random.Random(fresh_seed())
    sound = _member("sound", rng, ["q"])
    for a, b, scale in ((1.0, 1e30, 1e30), (1e300, 1.0, 1.0)):
        factor_a = torch.full((2, INNER), a, dtype=torch.float64)
        huge = LowRank(factor_a, torch.full((12, 2), b, dtype=torch.float64), scale)
        bank = Bank([sound, LowRankMember("huge", Path("/folder"), {"q": huge})])
        factors = bank.stack(["q"], [12], torch.float64)
        assert factors is not None
        bank.require_finite(factors, torch.float64, ["q"])
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(FamilyError, match="/folder: tensor q: .*'huge'"):
                bank.require_finite(factors, dtype, ["q"])
