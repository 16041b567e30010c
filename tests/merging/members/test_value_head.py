"""Scalar heads: where they may lie, what shapes they may have, and everything that is refused."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import rewrite_tensors, write_lora_member, write_tiny_base

from ladle.merging.checkpoints.checkpoint_reader import SINGLE
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import CONFIG
from ladle.merging.members.value_head import HEAD, load_value_head

SCORE = "score.weight"
HIDDEN = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter's folder, as far as a head is concerned."""
    (tmp_path / CONFIG).write_text("{}")
    return tmp_path


def weight(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(HIDDEN,), (1, HIDDEN)])
def test_heads_are_read_as_they_are(folder: Path, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = {"weight": weight(seed, *shape, dtype=dtype), "bias": weight(seed + 1, 1, dtype=dtype)}
    save_file(tensors, folder / HEAD)
    head = load_value_head(folder, HIDDEN)
    assert head.weight.shape == (HIDDEN,) and head.weight.dtype == torch.float32
    assert torch.equal(head.weight, tensors["weight"].reshape(-1).float())
    assert head.bias == tensors["bias"].item()
    save_file({"weight": tensors["weight"]}, folder / HEAD)
    assert load_value_head(folder, HIDDEN).bias == 0.0


def test_a_head_outlives_its_file(folder: Path, seed: int) -> None:
    save_file({"weight": weight(seed, HIDDEN)}, folder / HEAD)
    head = load_value_head(folder, HIDDEN)
    before = head.weight.clone()
    save_file({"weight": weight(seed + 1, HIDDEN)}, folder / HEAD)
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize(
    ("tensors", "tensor", "reason"),
    [
        ({"weight": torch.ones(HIDDEN + 1)}, "weight", "shape [33]"),
        ({"weight": torch.ones(2, HIDDEN)}, "weight", "shape [2, 32]"),
        ({"weight": torch.ones(HIDDEN, 1)}, "weight", "shape [32, 1]"),
        ({"weight": torch.ones(1, 1, HIDDEN)}, "weight", "shape [1, 1, 32]"),
        ({"weight": torch.ones(HIDDEN, dtype=torch.int64)}, "weight", "int64"),
        ({"weight": torch.full((HIDDEN,), math.nan)}, "weight", "NaN"),
        ({"weight": torch.full((1, HIDDEN), -math.inf)}, "weight", "infinite"),
        ({"bias": torch.ones(1)}, "weight", "missing"),
        ({"weight": torch.ones(HIDDEN), "bias": torch.ones(2)}, "bias", "shape [2]"),
        ({"weight": torch.ones(HIDDEN), "bias": torch.ones(1, dtype=torch.int32)}, "bias", "int32"),
        ({"weight": torch.ones(HIDDEN), "bias": torch.full((1,), math.nan)}, "bias", "NaN"),
        ({"weight": torch.ones(HIDDEN), "scale": torch.ones(1)}, "scale", "weight and bias"),
    ],
)
def test_heads_that_do_not_fit_are_named(
    folder: Path, tensors: dict[str, torch.Tensor], tensor: str, reason: str
) -> None:
    save_file(tensors, folder / HEAD)
    with pytest.raises(FamilyError) as caught:
        load_value_head(folder, HIDDEN)
    assert caught.value.file == str(folder / HEAD)
    assert caught.value.tensor == tensor and reason in caught.value.reason


def test_an_unreadable_head_is_named(folder: Path) -> None:
    (folder / HEAD).write_bytes(b"no safetensors")
    with pytest.raises(FamilyError, match=f"{HEAD}: cannot be read"):
        load_value_head(folder, HIDDEN)


def test_a_classifier_brings_its_own_head(tmp_path: Path, seed: int) -> None:
    full = write_tiny_base(tmp_path / "full", "llama", seed)
    with pytest.raises(FamilyError, match=HEAD):
        load_value_head(full, HIDDEN)
    rewrite_tensors(full / SINGLE, {SCORE: weight(seed, 1, HIDDEN)})
    head = load_value_head(full, HIDDEN)
    assert torch.equal(head.weight, weight(seed, 1, HIDDEN)[0]) and head.bias == 0.0
    save_file({"weight": weight(seed + 1, HIDDEN)}, full / HEAD)
    with pytest.raises(FamilyError, match="second head"):
        load_value_head(full, HIDDEN)
    (full / HEAD).unlink()
    for broken, reason in ((weight(seed, 2, HIDDEN), "[2, 32]"), (torch.full((1, HIDDEN), math.nan), "NaN")):
        rewrite_tensors(full / SINGLE, {SCORE: broken})
        with pytest.raises(FamilyError) as caught:
            load_value_head(full, HIDDEN)
        assert caught.value.tensor == SCORE and reason in caught.value.reason and SINGLE in caught.value.file


def test_a_checkpoint_may_have_a_head_beside_it(tmp_path: Path, seed: int) -> None:
    full = write_tiny_base(tmp_path / "full", "llama", seed)
    save_file({"weight": weight(seed, HIDDEN)}, full / HEAD)
    assert torch.equal(load_value_head(full, HIDDEN).weight, weight(seed, HIDDEN))


def test_an_adapter_without_a_head_is_refused(tmp_path: Path, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed)
    path = write_lora_member(tmp_path / "m", base, seed, target_modules=["q_proj"])
    with pytest.raises(FamilyError, match="an explicit value needs a scalar head") as caught:
        load_value_head(path, HIDDEN)
    assert caught.value.file == str(path / HEAD)
