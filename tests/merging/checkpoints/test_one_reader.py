"""Which tensors a folder means: for whoever checks it, merges it, and serves it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from seeds import fresh_seed
from transformers import AutoModelForCausalLM

from ladle.merging.bank.bank import Bank
from ladle.merging.checkpoints.architecture import open_weights, read_architecture
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family_model import open_model
from ladle.server.engine.forward.loaded_model import load_model
from tests.fixtures.tiny_models import rewrite_json, write_tiny_base

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def both(folder: Path, seed: int, **config: Any) -> Path:
    """One checkpoint in a single file and in shards with an index."""
    write_tiny_base(folder, "llama", seed, shard_size="30KB", **config)
    reader = CheckpointReader(folder)
    save_file({name: reader.tensor(name).clone() for name in reader.names}, folder / SINGLE, metadata={"format": "pt"})
    return folder


def change(file: Path, name: str) -> None:
    tensors = load_file(file)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})


def norm_of(folder: Path) -> torch.Tensor:
    """The final norm of the model that an engine serves."""
    model = load_model(folder, Bank([]), torch.device("cpu"), torch.float32, torch.float32).model
    return torch.as_tensor(model.model.norm.get_buffer("weight"))


def test_a_single_file_and_shards_that_agree(tmp_path: Path) -> None:
    folder = both(tmp_path, fresh_seed())
    assert CheckpointReader(folder).files == (folder / SINGLE,)


def test_a_single_file_and_complete_shards_that_differ_are_refused(tmp_path: Path) -> None:
    folder = both(tmp_path, fresh_seed())
    change(folder / SINGLE, "model.norm.weight")
    with pytest.raises(FamilyError, match=r"model\.norm\.weight") as caught:
        CheckpointReader(folder)
    assert str(folder / SINGLE) in str(caught.value) and str(folder / INDEX) in str(caught.value)


@pytest.mark.parametrize("stale", ["a shard is gone", "a tensor is gone", "no weight_map", "no JSON"])
def test_a_stale_index_beside_a_good_single_file(stale: str, tmp_path: Path) -> None:
    folder = both(tmp_path, fresh_seed())
    index = json.loads((folder / INDEX).read_text())
    if stale == "a shard is gone":
        (folder / next(iter(index["weight_map"].values()))).unlink()
    elif stale == "a tensor is gone":
        shard = next(iter(index["weight_map"].values()))
        rewrite_json(folder / INDEX, weight_map=index["weight_map"] | {"model.gone": shard})
    elif stale == "no weight_map":
        (folder / INDEX).write_text("{}")
    else:
        (folder / INDEX).write_text("{")
    change(folder / SINGLE, "model.norm.weight")
    expected: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(norm_of(folder), expected.model.norm.weight)


def test_an_index_that_names_the_single_file(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path, "llama", fresh_seed())
    names = CheckpointReader(folder).names
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))
    assert CheckpointReader(folder).names == names


def test_a_stray_copy_in_a_later_shard_is_not_served(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path, "llama", fresh_seed(), shard_size="30KB")
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    own, last = weight_map["model.embed_tokens.weight"], sorted(set(weight_map.values()))[-1]
    assert own != last
    tensors = load_file(folder / last)
    meant = load_file(folder / own)["model.embed_tokens.weight"]
    save_file(tensors | {"model.embed_tokens.weight": meant + 1}, folder / last, metadata={"format": "pt"})
    opened = open_model("", str(folder), tmp_path)
    assert torch.equal(opened.base.tensor("model.embed_tokens.weight"), meant)
    served = load_model(folder, Bank([]), torch.device("cpu"), torch.float32, torch.float32).model
    assert torch.equal(served.get_input_embeddings().weight, meant)


@pytest.mark.parametrize("sharded", [False, True])
def test_files_that_the_config_names(sharded: bool, tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path, "llama", fresh_seed(), **({"shard_size": "30KB"} if sharded else {}))
    other = "model.fp16.safetensors.index.json" if sharded else "model.fp16.safetensors"
    (folder / (INDEX if sharded else SINGLE)).rename(folder / other)
    with pytest.raises(FamilyError, match="transformers_weights"):
        CheckpointReader(folder)
    rewrite_json(folder / "config.json", transformers_weights=other)
    expected: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(norm_of(folder), expected.model.norm.weight)


def test_a_config_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", "llama", fresh_seed())
    rewrite_json(folder / "config.json", transformers_weights="../model.safetensors")
    with pytest.raises(FamilyError, match="transformers_weights"):
        CheckpointReader(folder)


def test_an_adapter_beside_a_base_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path, "llama", fresh_seed())
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(FamilyError, match="adapter"):
        open_model("", str(folder), tmp_path)


@pytest.mark.parametrize("differs", [True, False])
def test_both_sides_of_a_tie(differs: bool, tmp_path: Path) -> None:
    """transformers does not tie what the checkpoint holds twice with different values."""
    folder = write_tiny_base(tmp_path, "llama", fresh_seed(), tie=True)
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + float(differs)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    weights, architecture = open_weights(folder, read_architecture(folder))
    assert bool(architecture.tied) is not differs
    model = architecture.blueprint.build(weights.tensor, architecture.tied, torch.float32, "sdpa")
    expected: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_the_other_side_of_a_tie_alone(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path, "llama", fresh_seed(), tie=True)
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    weights, architecture = open_weights(folder, read_architecture(folder))
    assert torch.equal(weights.tensor("model.embed_tokens.weight"), tensors["lm_head.weight"])
    model = architecture.blueprint.build(weights.tensor, architecture.tied, torch.float32, "sdpa")
    assert model.lm_head.weight is model.model.embed_tokens.weight
