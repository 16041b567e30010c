"""Steering vectors on disk: what is read, and everything that is refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import write_family
from vector_folder import write_vectors

from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import load_family
from ladle.merging.family.manifest import load_manifest
from ladle.merging.members.steering_vector import VECTOR, load_vector, save_vector
from ladle.merging.merges.export import export

LAYERS, HIDDEN = 3, 8


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_gguf(file: Path, directions: dict[str, np.ndarray], kind: str = "controlvector") -> Path:
    writer = gguf.GGUFWriter(str(file), kind)
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_vector_is_read_as_it_is(tmp_path: Path, seed: int, dtype: torch.dtype) -> None:
    saved = draw(seed, LAYERS, HIDDEN).to(dtype)
    save_vector(tmp_path / "v.safetensors", saved, {"method": "mean"})
    vector = load_vector(tmp_path / "v.safetensors", "v", LAYERS, HIDDEN)
    assert torch.equal(vector.directions, saved.float()) and vector.directions.dtype == torch.float32
    assert (vector.name, vector.numel(), vector.nbytes()) == ("v", LAYERS * HIDDEN, saved.nbytes)


def test_a_control_vector_begins_after_the_second_layer(tmp_path: Path, seed: int) -> None:
    first, last = draw(seed, HIDDEN).numpy(), draw(seed + 1, HIDDEN).numpy().astype(np.float16)
    file = write_gguf(tmp_path / "v.gguf", {"direction.2": last, "direction.1": first})
    vector = load_vector(file, "v", LAYERS, HIDDEN)
    assert torch.equal(vector.directions[0], torch.zeros(HIDDEN))
    assert np.array_equal(vector.directions[1].numpy(), first)
    assert np.array_equal(vector.directions[2].numpy(), last.astype(np.float32))
    assert vector.nbytes() == first.nbytes + last.nbytes
    alone = load_vector(write_gguf(tmp_path / "w.gguf", {"direction.2": last}), "w", LAYERS, HIDDEN)
    assert not alone.directions[:2].any() and alone.directions[2].any()


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"v": torch.ones(LAYERS, HIDDEN - 1)}, r"tensor v: torch.float32 of shape \[3, 7\], but \[3, 8\] is needed"),
        ({"v": torch.ones(LAYERS + 1, HIDDEN)}, r"a row for each of the base's 3 layers"),
        ({"v": torch.ones(HIDDEN)}, r"of shape \[8\]"),
        ({"v": torch.ones(LAYERS, HIDDEN, dtype=torch.int64)}, "torch.int64"),
        ({"v": torch.ones(LAYERS, HIDDEN).fill_(torch.nan)}, "24 of 24 values are NaN or infinite"),
        ({"v": torch.full((LAYERS, HIDDEN), 1e300, dtype=torch.float64)}, "NaN or infinite"),
        ({"a": torch.ones(LAYERS, HIDDEN), "b": torch.ones(LAYERS, HIDDEN)}, "2 tensors; one alone is expected"),
        ({}, "0 tensors; one alone is expected"),
    ],
)  # fmt: skip
def test_what_is_no_vector_of_the_base_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], complaint: str
) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(FamilyError, match=complaint):
        load_vector(tmp_path / "v.safetensors", "v", LAYERS, HIDDEN)


@pytest.mark.parametrize(
    ("directions", "kind", "complaint"),
    [
        ({"direction.1": np.ones(HIDDEN, np.float32)}, "llama", "general.architecture is 'llama'"),
        ({"direction.0": np.ones(HIDDEN, np.float32)}, "controlvector", "1 to 2 are possible"),
        ({"direction.3": np.ones(HIDDEN, np.float32)}, "controlvector", "the base has 3 layers"),
        ({"direction.x": np.ones(HIDDEN, np.float32)}, "controlvector", "only direction.1, direction.2"),
        ({"vector.1": np.ones(HIDDEN, np.float32)}, "controlvector", "only direction.1, direction.2"),
        ({"direction.1": np.ones(HIDDEN + 1, np.float32)}, "controlvector", r"of shape \[9\]; 8 numbers"),
        ({"direction.1": np.ones((2, HIDDEN), np.float32)}, "controlvector", "8 numbers"),
        ({"direction.1": np.ones(HIDDEN, np.int32)}, "controlvector", "float32 or float16"),
        ({"direction.1": np.full(HIDDEN, np.nan, np.float32)}, "controlvector", "8 of 8 values are NaN"),
        ({}, "controlvector", "no direction"),
    ],
)
def test_what_is_no_control_vector_is_refused(
    tmp_path: Path, directions: dict[str, np.ndarray], kind: str, complaint: str
) -> None:
    with pytest.raises(FamilyError, match=complaint):
        load_vector(write_gguf(tmp_path / "v.gguf", directions, kind), "v", LAYERS, HIDDEN)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 40, b"\x00" * 4000])
@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_what_cannot_be_read_is_said(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"v{suffix}"
    file.write_bytes(content)
    with pytest.raises(FamilyError, match="cannot be read as"):
        load_vector(file, "v", LAYERS, HIDDEN)


def test_a_family_has_them_as_members(tmp_path: Path, seed: int) -> None:
    root = write_family(tmp_path / "f", seed=seed, policies=False)
    written = write_vectors(root, seed)
    (root / "folder").mkdir()
    save_vector(root / "folder" / VECTOR, written["calm"].float())
    with (root / "family.toml").open("a") as file:
        file.write('[[vectors]]\nname = "again"\npath = "folder"\n')
    family = load_family(root)
    assert list(family.vectors) == ["calm", "loud", "again"]
    assert family.weighable == (*family.mergeable, "calm", "loud", "again")
    rows = [(row.name, row.kind, row.storage, row.rank, row.parameters) for row in family.members()][-3:]
    assert rows == [(name, "vector", "vector", None, 64) for name in ("calm", "loud", "again")]
    assert all(torch.equal(family.vectors[name].directions.double(), vector) for name, vector in written.items())
    assert not load_manifest(root, {"calm", "again"}).vectors[1:]
    with pytest.raises(InputError, match="no checkpoint of weights can hold it"):
        export(family, {"bone-positive": 1.0, "calm": 1.0}, tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ('name = "calm"\npath = "nowhere.safetensors"', "vector 'calm': no such file"),
        ('name = "calm"\npath = "adapters/bone-positive"', "no such file"),
        ('name = "calm"\npath = "family.toml"', "'.toml' is no format of a steering vector"),
        ('name = "bone-positive"\npath = "x"', "occurs 2 times"),
        ('name = "calm"', "vectors[0].path"),
        ('name = "calm"\npath = "x"\nbase = "y"', "vectors[0].base"),
        ('name = "calm"\npath = "adapters/bone-positive/adapter_model.safetensors"', "one alone is expected"),
    ],
)
def test_an_entry_that_means_nothing_is_refused(tmp_path: Path, lines: str, complaint: str, seed: int) -> None:
    root = write_family(tmp_path, seed=seed, policies=False, extra=f"[[vectors]]\n{lines}\n")
    with pytest.raises(FamilyError) as caught:
        load_family(root)
    assert complaint in str(caught.value)
