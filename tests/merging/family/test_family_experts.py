"""Experts and a router of a family on disk: what is loaded, what the report says, everything that is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from routed_folder import EXPERTS, HEAD, write_routed_family, write_router_head
from safetensors.torch import load_file
from tiny_models import rewrite_json, rewrite_tensors, write_family, write_tiny_base

from ladle.merging.checkpoints.checkpoint_reader import SINGLE
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.family.report import build_report
from ladle.merging.members.router_head import load_router_head
from ladle.merging.merges.compress import compress

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    return write_routed_family(tmp_path / "family", "llama", seed, n=2)


def refused(root: Path) -> FamilyError:
    with pytest.raises(FamilyError) as caught:
        load_family(root)
    return caught.value


def edit(root: Path, old: str, new: str) -> None:
    file = root / "family.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("full", [(), ("json",), ("router",), ("math", "router")])
@pytest.mark.parametrize("defer", [False, True])
def test_experts_and_router_are_there(tmp_path: Path, full: tuple[str, ...], defer: bool, seed: int) -> None:
    root = write_routed_family(tmp_path / "family", "llama", seed, full=full, defer=defer)
    family = load_family(root)
    assert family.experts == EXPERTS[:3] and family.router is not None
    assert (family.router.name, family.router.member) == ("router", "router")
    saved = load_file(root / "experts" / "router" / HEAD)
    head = family.router.head
    assert torch.equal(head.weight, saved["weight"]) and torch.equal(head.bias, saved["bias"])
    assert (head.defer is not None) == defer
    if head.defer is not None:
        assert torch.equal(head.defer, saved["defer"]) and head.defer_bias == saved["defer_bias"].item()
    rows = {row.name: row for row in family.members()}
    assert [row.name for row in family.members()][-4:] == [*EXPERTS[:3], "router"]
    for name in (*family.experts, "router"):
        assert family.kinds[name] == rows[name].kind == ("router" if name == "router" else "expert")
        assert family.members_of[name] == name and (name in family.full) == (name in full)
        assert rows[name].storage == ("full" if name in full else "low-rank")
        folder = root / "experts" / name
        file = folder / (SINGLE if name in full else WEIGHTS)
        assert rows[name].parameters == sum(tensor.numel() for tensor in load_file(file).values())
    # They are language models of the base: they may be averaged, as Task Arithmetic does.
    assert {*family.experts, "router"} <= {*family.mergeable}


def test_the_names_of_the_manifest_count(root: Path) -> None:
    edit(root, "[router]", '[router]\nname = "conductor"')
    family = load_family(root)
    assert family.router is not None and family.router.name == "conductor" and family.kinds["conductor"] == "router"


def test_weights_may_be_shared_with_others(tmp_path: Path, seed: int) -> None:
    """An expert may be a backbone, and a router may still be the expert it starts from."""
    shared = {"math": "adapters/bone-positive", "router": "experts/json"}
    root = write_routed_family(tmp_path / "family", "llama", seed, shared=shared)
    family = load_family(root)
    assert [family.members_of[name] for name in family.experts] == ["bone-positive", "json", "chat"]
    assert family.router is not None and (family.router.name, family.router.member) == ("router", "json")
    assert not {"math", "router"} & ({*family.low_rank} | {*family.mergeable})
    report = build_report(family, "base", {"base": (True, "")}, ())
    assert report.router is not None
    assert [expert.weights for expert in report.router.experts] == ["bone-positive", "json", "chat"]
    assert "bone-positive" in next(rows for title, _, rows in report.tables() if title == "router router")[0]


def test_two_equal_experts_are_refused(tmp_path: Path, seed: int) -> None:
    root = write_routed_family(tmp_path / "family", "llama", seed, shared={"chat": "experts/../experts/math"})
    error = refused(root)
    assert error.file == str(root / "family.toml")
    assert "experts: 'math' and 'chat' have the same folder" in error.reason


def test_experts_without_router_and_router_without_experts_are_refused(root: Path, seed: int) -> None:
    text = (root / "family.toml").read_text()
    edit(root, '[router]\npath = "experts/router"\n', "")
    error = refused(root)
    assert error.file == str(root / "family.toml") and error.reason.startswith("router: missing")
    start, end = text.index("[[experts]]"), text.index("[router]")
    (root / "family.toml").write_text(text[:start] + text[end:])
    error = refused(root)
    assert error.file == str(root / "family.toml") and error.reason.startswith("experts: missing")


@pytest.mark.parametrize("name", ["json", "router"])
def test_a_missing_folder_is_named(root: Path, name: str) -> None:
    shutil.rmtree(root / "experts" / name)
    error = refused(root)
    assert error.file == str(root / "family.toml") and name in error.reason and "no such folder" in error.reason


def test_a_router_without_a_head_is_refused(root: Path) -> None:
    (root / "experts" / "router" / HEAD).unlink()
    error = refused(root)
    assert error.file == str(root / "experts" / "router" / HEAD) and "a router needs a head" in error.reason


@pytest.mark.parametrize("experts", [2, 4])
def test_a_head_for_another_number_of_experts_is_refused(root: Path, seed: int, experts: int) -> None:
    write_router_head(root / "experts" / "router", experts, 32, seed)
    error = refused(root)
    assert error.file == str(root / "experts" / "router" / HEAD) and error.tensor == "weight"
    assert f"[{experts}, 32], but [3, 32] is needed: one row for each of the 3 entries of [[experts]]" in error.reason


def test_a_head_for_another_model_is_refused(root: Path, seed: int) -> None:
    write_router_head(root / "experts" / "router", 3, 24, seed)
    error = refused(root)
    assert error.tensor == "weight" and "over the model's 32" in error.reason


@pytest.mark.parametrize("name", ["math", "router"])
def test_weights_that_do_not_fit_are_refused(root: Path, name: str) -> None:
    file = root / "experts" / name / WEIGHTS
    tensor = next(iter(load_file(file)))
    rewrite_tensors(file, {tensor: torch.full_like(load_file(file)[tensor], torch.nan)})
    error = refused(root)
    assert (error.file, error.tensor) == (str(file), tensor) and "NaN" in error.reason


@pytest.mark.parametrize("name", ["math", "router"])
@pytest.mark.parametrize("full", [False, True])
def test_another_vocabulary_is_refused(tmp_path: Path, seed: int, name: str, full: bool) -> None:
    root = write_routed_family(tmp_path / "family", "llama", seed, full=[name] if full else [])
    folder = root / "experts" / name
    document = json.loads((root / "base" / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    first, second = sorted(vocab, key=lambda token: vocab[token])[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    error = refused(root)
    assert error.file == str(folder / "tokenizer.json") and "tokenizer" in error.reason


def test_a_checkpoint_with_other_rows_is_refused(tmp_path: Path, seed: int) -> None:
    root = write_routed_family(tmp_path / "family", "llama", seed, full=["chat"])
    shutil.rmtree(root / "experts" / "chat")
    write_tiny_base(root / "experts" / "chat", "llama", seed, vocab_size=384)
    error = refused(root)
    assert error.file.startswith(str(root / "experts" / "chat")) and "384" in error.reason


def test_an_adapter_that_is_no_lora_is_refused(root: Path) -> None:
    rewrite_json(root / "experts" / "router" / "adapter_config.json", use_dora=True)
    error = refused(root)
    assert "use_dora" in error.reason


def test_the_report_has_experts_and_router(tmp_path: Path, seed: int) -> None:
    root = write_routed_family(tmp_path / "family", "llama", seed, defer=True)
    family = load_family(root)
    report = build_report(family, "base", {"base": (True, "")}, ())
    assert [row.kind for row in report.members][-4:] == ["expert"] * 3 + ["router"]
    saved = load_file(root / "experts" / "router" / HEAD)
    assert report.router is not None and (report.router.name, report.router.weights) == ("router", "router")
    assert [expert.name for expert in report.router.experts] == list(EXPERTS[:3])
    for row, expert in enumerate(report.router.experts):
        assert expert.norm == pytest.approx(float(saved["weight"][row].double().norm()), rel=1e-5)
        assert expert.bias == float(saved["bias"][row]) and expert.weights == expert.name
    assert report.router.defer is not None
    assert report.router.defer["norm"] == pytest.approx(float(saved["defer"].double().norm()), rel=1e-5)
    document = json.loads(json.dumps(report.as_dict()))
    assert [expert["name"] for expert in document["router"]["experts"]] == list(EXPERTS[:3])
    text = report.text()
    assert "router router" in text and "(deferral)" in text


def test_a_family_without_experts_has_no_such_table(tmp_path: Path, seed: int) -> None:
    family = load_family(write_family(tmp_path / "family", "llama", seed, n=2))
    assert family.experts == () and family.router is None
    report = build_report(family, "base", {"base": (True, "")}, ())
    assert report.router is None and not [title for title, _, _ in report.tables() if title.startswith("router")]
    assert json.loads(json.dumps(report.as_dict()))["router"] is None


def test_a_compressed_router_keeps_its_head(tmp_path: Path, seed: int) -> None:
    root = write_routed_family(tmp_path / "family", "llama", seed, full=["router"])
    family = load_family(root)
    compress(family.full["router"], family.base, family.architecture, root / "experts" / "small", rank=4)
    assert family.router is not None
    kept = load_router_head(root / "experts" / "small", 3, 32)
    assert torch.equal(kept.weight, family.router.head.weight) and torch.equal(kept.bias, family.router.head.bias)
    edit(root, "experts/router", "experts/small")
    assert "router" in load_family(root).low_rank
