import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import rewrite_json, rewrite_tensors, write_tiny_base

from ladle.merging.checkpoints.checkpoint_reader import INDEX, SINGLE, CheckpointReader
from ladle.merging.exceptions import FamilyError


def test_one_file_is_read_as_it_was_written(tmp_path: Path, seed: int) -> None:
    folder = write_tiny_base(tmp_path / "base", "qwen2", seed)
    expected = load_file(folder / SINGLE)
    reader = CheckpointReader(folder)
    assert set(reader) == set(expected) and len(reader) == len(expected)
    for name, tensor in expected.items():
        assert torch.equal(reader.tensor(name), tensor)
        assert (reader.shape(name), reader.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
    assert reader.numel() == sum(tensor.numel() for tensor in expected.values())
    assert reader.nbytes() == sum(tensor.nbytes for tensor in expected.values())
    assert "model.norm.weight" in reader and "nothing" not in reader


def test_shards_read_like_one_file(tmp_path: Path, seed: int) -> None:
    whole = CheckpointReader(write_tiny_base(tmp_path / "whole", "llama", seed))
    sharded = CheckpointReader(write_tiny_base(tmp_path / "sharded", "llama", seed, shard_size="30KB"))
    assert len(sharded.files) > 1 and (tmp_path / "sharded" / INDEX).is_file()
    assert sharded.names == whole.names
    assert all(torch.equal(sharded.tensor(name), whole.tensor(name)) for name in whole)


def test_dtypes_survive(tmp_path: Path) -> None:
    tensors = {
        str(dtype): torch.ones(3).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool)
    }
    save_file(tensors, tmp_path / SINGLE)
    reader = CheckpointReader(tmp_path)
    assert {str(reader.dtype(name)) for name in reader} == set(tensors)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "b", shard_size="30KB")
    victim = CheckpointReader(folder).files[1]
    victim.unlink()
    with pytest.raises(FamilyError, match=victim.name):
        CheckpointReader(folder)


def test_a_tensor_that_the_index_promises_is_named(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "b", shard_size="30KB")
    reader = CheckpointReader(folder)
    file = reader.file_of("model.norm.weight")
    rewrite_tensors(file, {"model.norm.weight": None, "spare": torch.ones(1)})
    with pytest.raises(FamilyError) as caught:
        CheckpointReader(folder)
    assert (caught.value.file, caught.value.tensor) == (str(file), "model.norm.weight")


def test_an_index_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "b", shard_size="30KB")
    rewrite_json(folder / INDEX, weight_map={"model.norm.weight": "../elsewhere.safetensors"})
    with pytest.raises(FamilyError, match="plain file name"):
        CheckpointReader(folder)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FamilyError, match="pytorch_model.bin is a pickle"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00not json", b"\x02" + 7 * b"\x00" + b"[]"]
)
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(FamilyError, match=SINGLE):
        CheckpointReader(tmp_path)


def test_values_are_checked_and_overflowing_sums_are_no_alarm(tmp_path: Path) -> None:
    tensors = {"large": torch.full((8,), 3e38), "fine": torch.ones(8)}
    save_file(tensors, tmp_path / SINGLE)
    CheckpointReader(tmp_path).check_finite()
    for bad in (math.nan, math.inf, -math.inf):
        save_file({**tensors, "broken": torch.tensor([1.0, bad])}, tmp_path / SINGLE)
        with pytest.raises(FamilyError, match="broken.*1 of 2"):
            CheckpointReader(tmp_path).check_finite()
