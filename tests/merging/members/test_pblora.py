"""PBLoRA folders against dW(mu) = s (B1 W1 A1 + B2 W2(mu) A2), written out in float64."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_folder import write_pblora
from reference_weights import read_deltas
from safetensors.torch import load_file
from tiny_models import rewrite_json, rewrite_tensors, write_tiny_base

from ladle.merging.bank.bank import Bank
from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import CONFIG, WEIGHTS, load_peft
from ladle.merging.members.pblora import is_pblora_folder, load_pblora

NAMES = ("positive", "simple", "concise", "warm")
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def shapes(base: Path) -> dict[str, tuple[int, int]]:
    return read_architecture(base).linear


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_parts_add_up_to_the_formula_at_any_preference(
    tmp_path: Path, base: Path, shapes: Any, n: int, seed: int
) -> None:
    rng = random.Random(seed)
    r1, r2 = rng.sample(range(1, 5), 2)  # different, so that one cannot stand for the other
    write_pblora(tmp_path / "arm", base, seed, n, r1=r1, r2=r2)
    rewrite_json(tmp_path / "arm" / CONFIG, lora_alpha=(alpha := rng.choice([1, 3, 8, 2.5])))
    arm = load_pblora(tmp_path / "arm", "arm", NAMES[:n], shapes)
    assert [objective for objective, _ in arm.rows] == list(NAMES[:n])
    assert [member.name for _, member in arm.rows] == [f"arm@{name}" for name in NAMES[:n]]
    tensors = {name: tensor.double() for name, tensor in load_file(tmp_path / "arm" / WEIGHTS).items()}
    assert arm.rank == r1 + r2
    assert arm.numel() == sum(tensor.numel() for tensor in tensors.values())
    assert arm.nbytes() == 4 * arm.numel()
    members = [arm.fixed, *(member for _, member in arm.rows)]
    bank = Bank(members)
    for _ in range(3):
        weights = [rng.uniform(0, 1) for _ in range(n)]
        mu = torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)
        row = torch.tensor([1.0, *mu.tolist()], dtype=torch.float64)
        for module in arm.fixed.modules:
            a, b, w1, w2 = (tensors[f"base_model.model.{module}.pblora_{part}"] for part in ("A", "B", "W1", "W2"))
            mixing = torch.zeros(r2, r2, dtype=torch.float64)
            for i in range(n):
                for j in range(r2):
                    for k in range(r2):
                        mixing[j, k] += mu[i] * w2[i, j * r2 + k]
            expected = alpha / r2 * (b[:, :r1] @ w1 @ a[:r1] + b[:, r1:] @ mixing @ a[r1:])
            dense = sum(
                (c * member.modules[module].delta(torch.float64) for c, member in zip(row, members, strict=True)),
                torch.zeros_like(expected),
            )
            torch.testing.assert_close(dense, expected, rtol=1e-11, atol=1e-12)
            factors = bank.stack([module], [expected.shape[0]], torch.float64)
            assert factors is not None
            merged = factors.expand @ (row[factors.columns][:, None] * factors.shrink)
            torch.testing.assert_close(merged, expected, rtol=1e-11, atol=1e-12)
    assert {f"{module}.weight" for module in arm.fixed.modules} == set(read_deltas(tmp_path / "arm", base)[""])


def test_products_of_factors_are_not_rounded(tmp_path: Path, base: Path, shapes: Any, seed: int) -> None:
    """Factors saved in bfloat16 are exact numbers; their products are kept in float64."""
    write_pblora(tmp_path / "arm", base, seed, 2)
    file = tmp_path / "arm" / WEIGHTS
    rewrite_tensors(file, {name: tensor.bfloat16() for name, tensor in load_file(file).items()})
    arm = load_pblora(tmp_path / "arm", "arm", NAMES[:2], shapes)
    assert arm.nbytes() == 2 * arm.numel()
    expected = read_deltas(tmp_path / "arm", base)
    for part, member in (("", arm.fixed), *((str(i), member) for i, (_, member) in enumerate(arm.rows))):
        for module, factors in member.modules.items():
            torch.testing.assert_close(
                factors.delta(torch.float64), expected[part][f"{module}.weight"], rtol=1e-12, atol=1e-13
            )


def test_pblora_folders_are_told_apart(tmp_path: Path, base: Path, shapes: Any) -> None:
    write_pblora(tmp_path / "arm", base, 0, 2)
    assert is_pblora_folder(tmp_path / "arm") and not is_pblora_folder(base)
    with pytest.raises(FamilyError, match="PBLORA"):
        load_peft(tmp_path / "arm", "arm", shapes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"r1": 0}, "r1"),
        ({"r2": "2"}, "r2"),
        ({"r2": True}, "r2"),
        ({"obj_num": None}, "obj_num"),
        ({"obj_num": 3}, "obj_num"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_rslora": True}, "use_rslora"),
        ({"an_option_of_the_future": "on"}, "an_option_of_the_future"),
    ],
)
def test_configs_with_another_meaning_are_refused(
    tmp_path: Path, base: Path, shapes: Any, changes: dict[str, Any], key: str
) -> None:
    write_pblora(tmp_path / "arm", base, 0, 2)
    rewrite_json(tmp_path / "arm" / CONFIG, **changes)
    with pytest.raises(FamilyError, match=key) as caught:
        load_pblora(tmp_path / "arm", "arm", NAMES[:2], shapes)
    assert caught.value.file.endswith(CONFIG)


def test_what_does_not_matter_may_be_there(tmp_path: Path, base: Path, shapes: Any) -> None:
    write_pblora(tmp_path / "arm", base, 0, 2)
    rewrite_json(
        tmp_path / "arm" / CONFIG, fan_in_fan_out=False, modules_to_save=None, inference_mode=True,
        pref_vec_init=[0.3, 0.7], layers_to_transform=None, layers_pattern=None, revision=None, lora_dropout=0.1,
    )  # fmt: skip
    load_pblora(tmp_path / "arm", "arm", NAMES[:2], shapes)


@pytest.mark.parametrize(
    ("part", "tensor", "reason"),
    [
        ("A", torch.ones(4, 32), "shape [4, 32]"),
        ("A", torch.ones(5, 31), "shape [5, 31]"),
        ("B", torch.ones(31, 5), "shape [31, 5]"),
        ("W1", torch.ones(2, 2), "shape [2, 2]"),
        ("W2", torch.ones(3, 4), "shape [3, 4]"),
        ("W2", torch.ones(2, 9), "shape [2, 9]"),
        ("W2", torch.ones(2, 2, 2), "matrix"),
        ("W1", torch.full((3, 3), torch.nan), "NaN"),
        ("B", torch.full((32, 5), torch.inf), "infinite"),
        ("A", torch.ones(5, 32, dtype=torch.int32), "int32"),
        ("A", None, "missing"),
        ("B", None, "missing"),
        ("W1", None, "missing"),
        ("W2", None, "missing"),
        ("C", torch.ones(2, 2), "pblora_A"),
    ],
)
def test_broken_tensors_are_named(
    tmp_path: Path, base: Path, shapes: Any, part: str, tensor: torch.Tensor | None, reason: str
) -> None:
    write_pblora(tmp_path / "arm", base, 0, 2, r1=3, r2=2)
    name = f"{Q}.pblora_{part}"
    rewrite_tensors(tmp_path / "arm" / WEIGHTS, {name: tensor})
    with pytest.raises(FamilyError) as caught:
        load_pblora(tmp_path / "arm", "arm", NAMES[:2], shapes)
    assert caught.value.tensor == name and reason in caught.value.reason and caught.value.file.endswith(WEIGHTS)


def test_another_models_pblora_is_refused(tmp_path: Path, base: Path, shapes: Any) -> None:
    deeper = write_tiny_base(tmp_path / "deeper", "llama", num_hidden_layers=3)
    write_pblora(tmp_path / "arm", deeper, 0, 2)
    with pytest.raises(FamilyError, match=r"no linear module model\.layers\.2"):
        load_pblora(tmp_path / "arm", "arm", NAMES[:2], shapes)
    (tmp_path / "arm" / WEIGHTS).unlink()
    with pytest.raises(FamilyError, match="no such file"):
        load_pblora(tmp_path / "arm", "arm", NAMES[:2], shapes)
