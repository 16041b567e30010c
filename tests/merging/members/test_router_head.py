"""Heads of routers: what they hold, and everything that is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from routed_folder import write_router_head
from safetensors.torch import save_file

from ladle.merging.exceptions import FamilyError
from ladle.merging.members.router_head import ROUTER_HEAD, copy_router_head, load_router_head

HIDDEN, EXPERTS = 32, 3


def tensors_of(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (EXPERTS, HIDDEN), "bias": (EXPERTS,), "defer": (HIDDEN,), "defer_bias": (1,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_heads_are_read_as_they_are(tmp_path: Path, seed: int, dtype: torch.dtype) -> None:
    tensors = tensors_of(seed, dtype)
    save_file(tensors, tmp_path / ROUTER_HEAD)
    head = load_router_head(tmp_path, EXPERTS, HIDDEN)
    assert torch.equal(head.weight, tensors["weight"].float()) and torch.equal(head.bias, tensors["bias"].float())
    assert head.defer is not None and torch.equal(head.defer, tensors["defer"].float())
    assert head.defer_bias == tensors["defer_bias"].float().item()
    assert {head.weight.dtype, head.bias.dtype, head.defer.dtype} == {torch.float32}


def test_only_the_weight_is_needed(tmp_path: Path, seed: int) -> None:
    tensors = tensors_of(seed)
    save_file({"weight": tensors["weight"]}, tmp_path / ROUTER_HEAD)
    head = load_router_head(tmp_path, EXPERTS, HIDDEN)
    assert torch.equal(head.bias, torch.zeros(EXPERTS)) and head.defer is None and head.defer_bias == 0.0
    save_file({name: tensors[name] for name in ("weight", "defer")}, tmp_path / ROUTER_HEAD)
    head = load_router_head(tmp_path, EXPERTS, HIDDEN)
    assert head.defer is not None and head.defer_bias == 0.0


def test_one_expert_is_one_row(tmp_path: Path, seed: int) -> None:
    written = write_router_head(tmp_path, 1, HIDDEN, seed)
    assert torch.equal(load_router_head(tmp_path, 1, HIDDEN).weight, written["weight"])


def test_a_head_outlives_its_file(tmp_path: Path, seed: int) -> None:
    write_router_head(tmp_path, EXPERTS, HIDDEN, seed, defer=True)
    head = load_router_head(tmp_path, EXPERTS, HIDDEN)
    before = [head.weight.clone(), head.bias.clone(), head.defer.clone() if head.defer is not None else None]
    write_router_head(tmp_path, EXPERTS, HIDDEN, seed + 1, defer=True)
    assert head.defer is not None and before[2] is not None
    after = [head.weight, head.bias, head.defer]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True) if b is not None)


def test_heads_are_copied_with_their_router(tmp_path: Path, seed: int) -> None:
    for folder in ("from", "to", "without", "nothing"):
        (tmp_path / folder).mkdir()
    write_router_head(tmp_path / "from", EXPERTS, HIDDEN, seed)
    copy_router_head(tmp_path / "from", tmp_path / "to")
    copied, own = (load_router_head(tmp_path / folder, EXPERTS, HIDDEN) for folder in ("to", "from"))
    assert torch.equal(copied.weight, own.weight)
    copy_router_head(tmp_path / "without", tmp_path / "nothing")
    assert not list((tmp_path / "nothing").iterdir())


@pytest.mark.parametrize(
    ("changes", "tensor", "reason"),
    [
        ({"weight": torch.ones(EXPERTS + 1, HIDDEN)}, "weight", "shape [4, 32], but [3, 32] is needed"),
        ({"weight": torch.ones(EXPERTS - 1, HIDDEN)}, "weight", "one row for each of the 3 entries of [[experts]]"),
        ({"weight": torch.ones(EXPERTS, HIDDEN + 1)}, "weight", "over the model's 32"),
        ({"weight": torch.ones(HIDDEN, EXPERTS)}, "weight", "shape [32, 3]"),
        ({"weight": torch.ones(EXPERTS * HIDDEN)}, "weight", "shape [96]"),
        ({"weight": torch.ones(EXPERTS, HIDDEN, dtype=torch.int64)}, "weight", "int64"),
        ({"weight": torch.full((EXPERTS, HIDDEN), math.nan)}, "weight", "NaN"),
        ({"weight": torch.full((EXPERTS, HIDDEN), -math.inf)}, "weight", "infinite"),
        ({"weight": torch.full((EXPERTS, HIDDEN), 1e300, dtype=torch.float64)}, "weight", "infinite"),
        ({"weight": None}, "weight", "missing"),
        ({"bias": torch.ones(EXPERTS + 1)}, "bias", "shape [4]"),
        ({"bias": torch.ones(1, EXPERTS)}, "bias", "shape [1, 3]"),
        ({"bias": torch.ones(EXPERTS, dtype=torch.int32)}, "bias", "int32"),
        ({"bias": torch.full((EXPERTS,), math.nan)}, "bias", "NaN"),
        ({"defer": torch.ones(HIDDEN - 1)}, "defer", "shape [31]"),
        ({"defer": torch.ones(1, HIDDEN)}, "defer", "shape [1, 32]"),
        ({"defer": torch.full((HIDDEN,), math.inf)}, "defer", "infinite"),
        ({"defer": None}, "defer_bias", "no defer"),
        ({"defer_bias": torch.ones(2)}, "defer_bias", "shape [2]"),
        ({"defer_bias": torch.tensor(1.0)}, "defer_bias", "shape []"),
        ({"defer_bias": torch.full((1,), math.nan)}, "defer_bias", "NaN"),
        ({"gate": torch.ones(1)}, "gate", "only weight, bias, defer, defer_bias are expected"),
    ],
)
def test_heads_that_do_not_fit_are_named(
    tmp_path: Path, seed: int, changes: dict[str, Any], tensor: str, reason: str
) -> None:
    tensors = {**tensors_of(seed), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / ROUTER_HEAD)
    with pytest.raises(FamilyError) as caught:
        load_router_head(tmp_path, EXPERTS, HIDDEN)
    assert caught.value.file == str(tmp_path / ROUTER_HEAD)
    assert caught.value.tensor == tensor and reason in caught.value.reason


def test_a_missing_or_unreadable_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="a router needs a head") as caught:
        load_router_head(tmp_path, EXPERTS, HIDDEN)
    assert caught.value.file == str(tmp_path / ROUTER_HEAD)
    (tmp_path / ROUTER_HEAD).write_bytes(b"no safetensors")
    with pytest.raises(FamilyError, match=f"{ROUTER_HEAD}: cannot be read"):
        load_router_head(tmp_path, EXPERTS, HIDDEN)
