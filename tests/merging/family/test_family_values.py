"""Values, heads, further models and shared folders of a family on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_folder import KINDS, write_guided_family, write_head, write_pblora
from reference_weights import ReferenceWeights, read_head
from tiny_models import (
    rewrite_json,
    rewrite_tensors,
    write_family,
    write_full_member,
    write_lora_member,
    write_tiny_base,
)

from ladle.merging.checkpoints.checkpoint_reader import SINGLE
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import Family, load_family
from ladle.merging.members.value_head import HEAD
from ladle.merging.merges.streaming_merge import Merge

SCORE = "score.weight"
SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1}  # fmt: skip


def table(name: str, /, **entries: Any) -> str:
    return "\n".join([f"[[{name}]]", *(f"{key} = {json.dumps(entry)}" for key, entry in entries.items())]) + "\n"


def value(name: str = "v", kind: str = "implicit", path: str = "v", **entries: Any) -> str:
    return table("values", name=name, kind=kind, path=path, **entries)


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    return write_family(tmp_path / "family", "llama", seed, n=2)


def extend(root: Path, *tables: str) -> None:
    file = root / "family.toml"
    file.write_text(file.read_text() + "".join(tables))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_of_a_guided_family_is_there(tmp_path: Path, kind: str, seed: int) -> None:
    root = write_guided_family(tmp_path / "family", "llama", seed, kind=kind)
    family, reference = load_family(root), ReferenceWeights(root)
    assert list(family.models) == ["", "small", "amateur"] and family.amateur == "amateur"
    assert [model.architecture.hidden for model in family.models.values()] == [32, 24, 24]
    entries = {entry["name"]: entry for entry in reference.manifest["values"]}
    assert [value.name for value in family.values] == list(entries)
    for found in family.values:
        entry = entries[found.name]
        assert (found.kind, found.model, found.member) == (entry["kind"], entry.get("base", ""), found.name)
        assert (found.objective, found.system, found.anti) == tuple(
            entry.get(key) for key in ("objective", "system", "anti")
        )
        assert found.rewards == (tuple(entry["rewards"]) if "rewards" in entry else None)
        assert found.kind == "explicit" or found.reference == entry.get("reference", found.name != "arm")
        rows = entry.get("objectives", reference.objectives) if found.name == "arm" else ()
        assert found.conditioned == tuple((objective, f"arm@{objective}") for objective in rows)
    assert set(family.heads) == {name for name, entry in entries.items() if entry["kind"] == "explicit"}
    for name, head in family.heads.items():
        weight, bias = read_head(root / "values" / name)
        assert torch.equal(head.weight.double(), weight) and head.bias == bias
    # Every member is with its own model, and its deltas are those of the files.
    found = {name: model for model in family.models.values() for name in (*model.low_rank, *model.full)}
    assert set(found) == set(reference.members)
    for name, (owner, deltas) in reference.members.items():
        assert found[name].name == owner
        low = found[name].low_rank.get(name)
        if low is not None:
            assert {f"{module}.weight" for module in low.modules} == set(deltas)
            for module, factors in low.modules.items():
                torch.testing.assert_close(
                    factors.delta(torch.float64), deltas[f"{module}.weight"], rtol=1e-11, atol=1e-13
                )
    scorers = {name for name, entry in entries.items() if entry["kind"] == "explicit" or name == "arm"}
    assert set(family.mergeable) == {
        name for name in (*family.kinds,) if name not in scorers and found[name].name == ""
    }


def test_merges_of_a_further_model_are_its_own(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "family", "llama", seed, kind="small")
    family, reference = load_family(root), ReferenceWeights(root)
    coefficients = {"tuned-positive": 0.7, "tuned-simple": -0.4}
    merged = dict(Merge.of(family.models["small"]).tensors(coefficients, torch.float64))
    plain = dict(reference.models["small"].named_parameters())
    assert set(plain) - set(merged) <= {"lm_head.weight"}
    for name, tensor in merged.items():
        expected = plain[name].detach().clone()
        for member, coefficient in coefficients.items():
            delta = reference.members[member][1].get(name)
            expected += 0.0 if delta is None else coefficient * delta
        torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(KeyError):
        Merge.of(family).layout(coefficients)


def test_folders_that_several_entries_name_are_read_once(root: Path, seed: int) -> None:
    shutil.copytree(root / "adapters" / "only-simple", root / "judge")
    write_head(root / "judge", 32, seed)
    (root / "link").symlink_to(root / "adapters" / "only-positive")
    extend(
        root,
        value("tuned", path="adapters/only-positive", objective="positive"),
        value("again", path="link", objective="positive", reference=False),
        value("judge", "explicit", "judge", objective="simple"),
        value("other-judge", "explicit", "./judge", objective="positive"),
        value("tuned-simple", path="judge", objective="simple", anti="tuned"),
    )
    family = load_family(root)
    members = {value.name: value.member for value in family.values}
    assert members["tuned"] == members["again"] == "only-positive"
    assert members["judge"] == members["other-judge"] == members["tuned-simple"]
    assert next(value.anti for value in family.values if value.name == "tuned-simple") == "only-positive"
    assert set(family.heads) == {"judge", "other-judge"}
    assert len(family.low_rank) == 5
    assert set(family.mergeable) >= {"bone-positive", "bone-simple", "only-positive", "only-simple"}
    assert not {"tuned", "again", "other-judge"} & set(family.mergeable)
    rows = {row.name: row for row in family.members()}
    assert rows["tuned"].kind == "value" and rows["tuned"].rank == rows["only-positive"].rank
    assert rows["tuned"].parameters == rows["only-positive"].parameters


def test_one_folder_grown_from_two_models_is_two_members(root: Path, seed: int) -> None:
    write_tiny_base(root / "twin", "llama", seed + 1)
    extend(
        root,
        table("models", name="twin", model="twin"),
        value("a", path="adapters/only-positive", objective="positive"),
        value("b", path="adapters/only-positive", objective="positive", base="twin", reference=False),
    )
    family = load_family(root)
    assert {value.name: (value.model, value.member) for value in family.values} == {
        "a": ("", "only-positive"),
        "b": ("twin", "b"),
    }
    assert set(family.models["twin"].low_rank) == {"b"} and "b" not in family.low_rank


def full_value(root: Path, seed: int, *, head: bool = False) -> None:
    base = root / "untied"
    write_full_member(root / "v", base if base.is_dir() else root / "base", seed)
    if head:
        write_head(root / "v", 32, seed)


@pytest.mark.parametrize("tie", [True, False])
def test_full_checkpoints_may_be_classifiers(tmp_path: Path, tie: bool, seed: int) -> None:
    root = write_family(tmp_path / "family", "llama", seed, n=2, tie=tie)
    full_value(root, seed)
    score = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))
    # As a sequence classification checkpoint is saved: a score, no output head.
    rewrite_tensors(root / "v" / SINGLE, {SCORE: score, **({} if tie else {"lm_head.weight": None})})
    extend(root, value(kind="explicit", objective="positive"))
    family = load_family(root)
    assert torch.equal(family.heads["v"].weight, score[0]) and "v" in family.full and "v" not in family.mergeable
    row = next(row for row in family.members() if row.name == "v")
    assert row.storage == "full" and row.rank is None
    # What it lacks is the base's; the score is no weight of the model.
    merged = dict(Merge.of(family).tensors({"v": 1.0}))
    assert SCORE not in merged
    head = "model.embed_tokens.weight" if tie else "lm_head.weight"
    expected = family.full["v"].reader.tensor(head) if tie else family.base.tensor(head)
    torch.testing.assert_close(merged[head], expected)


@pytest.mark.parametrize(
    ("changes", "tensor", "reason"),
    [
        ({SCORE: torch.ones(2, 32)}, SCORE, "[2, 32]"),
        ({SCORE: torch.full((1, 32), torch.nan)}, SCORE, "NaN"),
        ({SCORE: torch.ones(1, 32), "model.norm.weight": None}, "model.norm.weight", "lacks"),
        ({SCORE: torch.ones(1, 32), "v_head.weight": torch.ones(1, 32)}, "v_head.weight", "a second head"),
    ],
)
def test_classifiers_that_do_not_fit_are_named(
    root: Path, seed: int, changes: dict[str, torch.Tensor | None], tensor: str, reason: str
) -> None:
    full_value(root, seed)
    rewrite_tensors(root / "v" / SINGLE, changes)
    extend(root, value(kind="explicit", objective="positive"))
    with pytest.raises(FamilyError) as caught:
        load_family(root)
    assert caught.value.tensor == tensor and reason in caught.value.reason


def test_language_models_need_what_scorers_do_without(tmp_path: Path, seed: int) -> None:
    root = write_family(tmp_path / "family", "llama", seed, n=2, tie=False)
    full_value(root, seed, head=True)
    rewrite_tensors(root / "v" / SINGLE, {"lm_head.weight": None})
    manifest = (root / "family.toml").read_text()
    extend(root, value(objective="positive"))
    with pytest.raises(FamilyError) as caught:
        load_family(root)
    assert caught.value.tensor == "lm_head.weight"
    # Not either where an explicit value had the folder read before.
    (root / "family.toml").write_text(manifest)
    extend(root, value(kind="explicit", objective="positive"))
    load_family(root)
    extend(root, value("w", path="v", objective="positive"))
    with pytest.raises(FamilyError) as caught:
        load_family(root)
    assert caught.value.tensor == "lm_head.weight"


def test_explicit_values_need_a_head_that_fits(root: Path, seed: int) -> None:
    write_lora_member(root / "v", root / "base", seed)
    extend(root, value(kind="explicit", objective="positive"))
    with pytest.raises(FamilyError, match=HEAD):
        load_family(root)
    write_head(root / "v", 24, seed)
    with pytest.raises(FamilyError, match="over the model's 32"):
        load_family(root)
    write_head(root / "v", 32, seed)
    assert load_family(root).heads["v"].weight.shape == (32,)


def test_values_of_a_further_model_are_checked_against_it(root: Path, seed: int) -> None:
    write_tiny_base(root / "small", "llama", seed + 1, **SMALL)
    write_lora_member(root / "v", root / "small", seed)
    write_head(root / "v", 24, seed)
    manifest = (root / "family.toml").read_text() + table("models", name="small", model="small")
    (root / "family.toml").write_text(manifest + value(kind="explicit", objective="positive", base="small"))
    family = load_family(root)
    assert family.heads["v"].weight.shape == (24,)
    assert set(family.models["small"].low_rank) == {"v"} and "v" not in family.low_rank and "v" not in family.mergeable
    (root / "family.toml").write_text(manifest + value(kind="explicit", objective="positive"))
    with pytest.raises(FamilyError, match="lora_"):
        load_family(root)


@pytest.mark.parametrize("arch", ["qwen2", "gemma2", "llama"])
@pytest.mark.parametrize("vocabulary", [None, 384])
def test_further_models_may_differ_in_everything_but_tokens(
    root: Path, seed: int, arch: str, vocabulary: int | None
) -> None:
    config = {**SMALL, **({"vocab_size": vocabulary} if vocabulary else {})}
    write_tiny_base(root / "other", arch, seed + 1, torch.bfloat16, **config)
    extend(root, table("models", name="other", model="other"))
    family = load_family(root)
    other = family.models["other"]
    assert other.name == "other" and other.base_path == root / "other" and family.amateur is None
    assert other.base_revision != family.base_revision
    assert len(other.architecture.linear) != len(family.architecture.linear)
    assert not other.low_rank and not other.full
    plain = dict(Merge.of(other).tensors({}))
    assert all(torch.equal(tensor, other.base.tensor(name)) for name, tensor in plain.items())


def swap_tokens(file: Path) -> None:
    document = json.loads(file.read_text())
    vocab = document["model"]["vocab"]
    first, second = sorted(vocab, key=lambda token: vocab[token])[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(document))


def test_further_models_with_other_tokens_are_refused(root: Path, seed: int) -> None:
    write_tiny_base(root / "small", "llama", seed + 1, **SMALL)
    extend(root, table("models", name="small", model="small"))
    swap_tokens(root / "small" / "tokenizer.json")
    with pytest.raises(FamilyError, match="tokenizer.json") as caught:
        load_family(root)
    assert str(root / "small") in caught.value.file
    (root / "small" / "tokenizer.json").unlink()
    with pytest.raises(FamilyError, match="tokenizer.json"):
        load_family(root)


def test_a_further_model_may_have_the_base_s_tokenizer(root: Path, seed: int) -> None:
    write_tiny_base(root / "small", "llama", seed + 1, **SMALL)
    manifest = (root / "family.toml").read_text()
    extend(root, table("models", name="small", model="small", tokenizer="base"))
    swap_tokens(root / "small" / "tokenizer.json")
    with pytest.raises(FamilyError, match="tokenizer.json"):  # what is there is compared all the same
        load_family(root)
    (root / "small" / "tokenizer.json").unlink()
    assert load_family(root).models["small"].base_path == root / "small"
    (root / "family.toml").write_text(manifest + table("models", name="small", model="small"))
    with pytest.raises(FamilyError, match='say tokenizer = "base"'):
        load_family(root)
    tokens = json.loads((root / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    write_tiny_base(root / "less", "llama", seed + 1, **{**SMALL, "vocab_size": max(tokens.values())})
    (root / "less" / "tokenizer.json").unlink()
    (root / "family.toml").write_text(manifest + table("models", name="less", model="less", tokenizer="base"))
    with pytest.raises(FamilyError, match="embed_tokens"):
        load_family(root)


def test_further_models_that_lack_tokens_are_refused(root: Path, seed: int) -> None:
    tokens = json.loads((root / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    write_tiny_base(root / "small", "llama", seed + 1, **{**SMALL, "vocab_size": max(tokens.values())})
    extend(root, table("models", name="small", model="small"))
    with pytest.raises(FamilyError, match="embed_tokens"):
        load_family(root)


def test_broken_further_models_are_named(root: Path, seed: int) -> None:
    extend(root, table("models", name="small", model="small"))
    with pytest.raises(FamilyError, match="small"):
        load_family(root)
    write_tiny_base(root / "small", "llama", seed + 1, **SMALL)
    rewrite_json(root / "small" / "config.json", intermediate_size=48)
    with pytest.raises(FamilyError, match="small.*mlp"):
        load_family(root)


def arm(root: Path, seed: int, n: int = 2, **entries: Any) -> Family:
    write_pblora(root / "v", root / "base", seed, n)
    extend(root, value(**entries))
    return load_family(root)


def test_a_pblora_is_pseudo_members_of_its_model(root: Path, seed: int) -> None:
    family = arm(root, seed, system="Weigh.")
    (found,) = family.values
    assert found.conditioned == (("positive", "v@positive"), ("simple", "v@simple")) and found.member == "v"
    assert found.system == "Weigh." and not found.reference
    assert [name for name in family.low_rank if name.startswith("v")] == ["v", "v@positive", "v@simple"]
    assert not {"v", "v@positive", "v@simple"} & {*family.mergeable}
    assert [row.name for row in family.members()][-1] == "v" and family.members()[-1].rank == 5
    # A second entry of the same folder shares all of it.
    extend(root, value("w"))
    first, second = load_family(root).values
    assert second.conditioned == first.conditioned and second.member == "v"


def test_a_pblora_says_what_its_rows_are(root: Path, seed: int) -> None:
    family = arm(root, seed, objectives=["simple", "positive"])
    parts = dict(family.values[0].conditioned)
    other = root.parent / "other"
    shutil.copytree(root, other)
    (other / "family.toml").write_text(
        (root / "family.toml").read_text().replace('objectives = ["simple", "positive"]\n', "")
    )
    default = load_family(other)
    defaults = dict(default.values[0].conditioned)
    for module, factors in family.low_rank[parts["simple"]].modules.items():
        assert torch.equal(factors.b, default.low_rank[defaults["positive"]].modules[module].b)
        assert not torch.equal(factors.b, default.low_rank[defaults["simple"]].modules[module].b)


@pytest.mark.parametrize(
    ("entries", "n", "reason"),
    [
        ({"objective": "positive"}, 2, "PBLoRA"),
        ({"rewards": [0.5, 0.5]}, 2, "PBLoRA"),
        ({}, 3, "obj_num"),
        ({"reference": True}, 2, "reference"),
        ({"anti": "only-simple"}, 2, "anti"),
        ({"objectives": ["positive"]}, 2, "obj_num"),
        ({"objectives": ["positive", "positive"]}, 2, "objectives"),
        ({"objectives": ["positive", "wit"]}, 2, "wit"),
    ],
)
def test_pbloras_that_do_not_fit_the_entry_are_refused(
    root: Path, seed: int, entries: dict[str, Any], n: int, reason: str
) -> None:
    with pytest.raises(FamilyError, match=reason):
        arm(root, seed, n, **entries)


def test_a_value_that_stands_for_nothing_is_refused(root: Path) -> None:
    extend(root, value(path="adapters/only-positive"))
    with pytest.raises(FamilyError, match=r"'v'.*neither objective nor rewards.*PBLoRA"):
        load_family(root)


def test_a_pblora_is_no_policy(root: Path, seed: int) -> None:
    shutil.rmtree(root / "adapters" / "only-simple")
    write_pblora(root / "adapters" / "only-simple", root / "base", seed, 2)
    with pytest.raises(FamilyError, match="PBLoRA"):
        load_family(root)
