import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import (
    rewrite_json,
    rewrite_tensors,
    write_family,
    write_full_member,
    write_lora_member,
    write_tiny_base,
)

from ladle.guidance.methods.rewarded_soup import RewardedSoup
from ladle.merging.checkpoints.checkpoint_reader import SINGLE
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.family.place import find_manifest
from ladle.merging.members.adapter import WEIGHTS
from ladle.merging.preferences.preference import Preference

FULL = "adapters/bone-simple"


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    return write_family(tmp_path / "family", "llama", seed, n=2, full=("bone-simple",))


def test_a_family_is_loaded_whole(root: Path) -> None:
    family = load_family(root)
    assert family.name == "tiny" and family.objectives == ("positive", "simple")
    assert family.backbones == ("bone-positive", "bone-simple")
    assert family.singles == {"positive": "only-positive", "simple": "only-simple"}
    assert set(family.low_rank) == {"bone-positive", "only-positive", "only-simple"} and set(family.full) == {
        "bone-simple"
    }
    assert family.kinds == {
        "bone-positive": "backbone",
        "bone-simple": "backbone",
        "only-positive": "policy",
        "only-simple": "policy",
    }
    assert family.matrix is not None
    np.testing.assert_allclose(family.matrix, [[0.7, 0.3], [0.3, 0.7]])
    rows = {row.name: row for row in family.members()}
    assert rows["bone-positive"].rank == 5 and rows["bone-positive"].rewards == (0.7, pytest.approx(0.3))
    assert rows["bone-simple"].storage == "full" and rows["bone-simple"].rank is None
    assert rows["bone-simple"].parameters == family.base.numel()
    assert rows["only-simple"].objective == "simple"


def test_names_paths_and_files_all_find_it(root: Path) -> None:
    assert find_manifest(root) == find_manifest(root / "family.toml") == find_manifest(str(root))
    with pytest.raises(FamilyError, match="installed: demo"):
        find_manifest("no-such-family")
    with pytest.raises(FamilyError, match="family.toml"):
        find_manifest(root / "base")


def test_the_base_revision_follows_the_weights(root: Path, tmp_path: Path) -> None:
    first = load_family(root).base_revision
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert load_family(copy).base_revision == first
    reader = load_family(copy).base
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite_tensors(copy / "base" / SINGLE, {name: reader.tensor(name) + 1e-3})
    assert load_family(copy).base_revision != first
    shutil.copyfile(root / "base" / SINGLE, copy / "base" / SINGLE)
    rewrite_json(copy / "base" / "config.json", rms_norm_eps=1e-3)
    shutil.rmtree(copy / FULL)
    write_full_member(copy / FULL, copy / "base")
    assert load_family(copy).base_revision != first


@pytest.mark.parametrize(
    ("tensor", "change", "reason"),
    [
        ("model.layers.0.mlp.up_proj.weight", torch.ones(64, 31), "shape [64, 31]"),
        ("model.norm.weight", None, "lacks"),
        ("model.extra.weight", torch.ones(1), "no such tensor"),
        ("model.norm.weight", torch.full((32,), math.nan), "NaN"),
        ("model.norm.weight", torch.ones(32, dtype=torch.int64), "dtype"),
    ],
)
def test_full_members_that_do_not_fit_are_named(
    root: Path, tensor: str, change: torch.Tensor | None, reason: str
) -> None:
    rewrite_tensors(root / FULL / SINGLE, {tensor: change})
    with pytest.raises(FamilyError) as caught:
        load_family(root)
    assert caught.value.tensor == tensor and reason in caught.value.reason
    assert str(root / FULL) in caught.value.file


def test_full_members_may_have_another_dtype_and_shards(root: Path) -> None:
    shutil.rmtree(root / FULL)
    write_full_member(root / FULL, root / "base", dtype=torch.bfloat16, shard_size="30KB")
    member = load_family(root).full["bone-simple"]
    assert member.reader.dtype("model.norm.weight") == torch.bfloat16 and len(member.reader.files) > 1


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", 1e-3), ("num_attention_heads", 8), ("hidden_act", "gelu"), ("vocab_size", 300)]
)
def test_full_members_with_another_config_are_refused(root: Path, key: str, value: object) -> None:
    rewrite_json(root / FULL / "config.json", **{key: value})
    with pytest.raises(FamilyError, match=f"config.json: .*{key}|config.json: head_dim"):
        load_family(root)


def test_full_members_may_differ_in_bookkeeping(root: Path) -> None:
    rewrite_json(root / FULL / "config.json", _name_or_path="elsewhere", transformers_version="4.0", use_cache=False)
    load_family(root)


@pytest.mark.parametrize("member", [FULL, "adapters/only-positive"])
def test_another_tokenizer_is_refused(root: Path, member: str) -> None:
    document = json.loads((root / "base" / "tokenizer.json").read_text())
    document["padding"] = None
    document["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (root / member / "tokenizer.json").write_text(json.dumps(document))
    load_family(root)  # the state that training leaves in a tokenizer is no difference
    vocab = document["model"]["vocab"]
    first, second = sorted(vocab, key=lambda token: vocab[token])[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (root / member / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(FamilyError, match="tokenizer.json"):
        load_family(root)


def test_an_adapter_of_another_base_is_refused(root: Path, tmp_path: Path) -> None:
    other = write_tiny_base(tmp_path / "other", "llama", hidden_size=48)
    shutil.rmtree(root / "adapters/only-simple")
    write_lora_member(root / "adapters/only-simple", other)
    with pytest.raises(FamilyError, match=f"only-simple/{WEIGHTS}: tensor .*lora_"):
        load_family(root)


def test_a_missing_member_is_named(root: Path) -> None:
    shutil.rmtree(root / "adapters/only-simple")
    with pytest.raises(FamilyError, match="policy 'only-simple'"):
        load_family(root)


def test_a_base_that_contradicts_its_config_is_refused(root: Path) -> None:
    rewrite_json(root / "base" / "config.json", intermediate_size=48)
    with pytest.raises(FamilyError) as caught:
        load_family(root)
    assert caught.value.tensor is not None and "mlp" in caught.value.tensor


def test_a_quantised_or_unknown_base_is_refused(root: Path) -> None:
    rewrite_json(root / "base" / "config.json", quantization_config={"quant_method": "hqq", "bits": 4})
    with pytest.raises(FamilyError, match="config.json"):
        load_family(root)
    rewrite_json(root / "base" / "config.json", model_type="nothing-known")
    with pytest.raises(FamilyError, match="config.json"):
        load_family(root)


def test_a_policy_may_be_a_backbone(root: Path) -> None:
    file = root / "family.toml"
    file.write_text(file.read_text().replace('path = "adapters/only-positive"', 'path = "adapters/bone-positive"'))
    family = load_family(root)
    assert family.singles["positive"] == "bone-positive" and "only-positive" not in family.mergeable
    coefficients = (
        RewardedSoup().coefficients(family, Preference.of({"positive": 1, "simple": 3}, family.objectives)).as_dict()
    )
    assert coefficients == {"bone-positive": 0.25, "only-simple": 0.75}
    rows = {row.name: row for row in family.members()}
    assert rows["only-positive"].kind == "policy" and rows["only-positive"].rank == rows["bone-positive"].rank


@pytest.mark.parametrize("kind", ["bone", "only"])
def test_members_that_are_merged_with_each_other_differ(root: Path, kind: str) -> None:
    file = root / "family.toml"
    file.write_text(file.read_text().replace(f'path = "adapters/{kind}-simple"', f'path = "adapters/{kind}-positive"'))
    with pytest.raises(FamilyError, match=f"'{kind}-positive' and '{kind}-simple' have the same folder"):
        load_family(root)
