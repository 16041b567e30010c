"""A disk that is full while a checkpoint is written: one message, and nothing is left of it."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from little_room import little_room
from tiny_models import write_family, write_full_member

from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.checkpoints.new_folder import forget_unfinished, new_folder
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.members.full_member import load_full
from ladle.merging.merges.compress import compress
from ladle.merging.merges.export import export


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), seed=6)


def test_a_merge(root: Path, tmp_path: Path) -> None:
    family = load_family(root)
    with little_room(), pytest.raises(FamilyError, match="cannot be written: File too large") as caught:
        export(family, {"bone-positive": 1.0}, tmp_path / "out")
    assert caught.value.file == str(tmp_path / "out") and not list(tmp_path.iterdir())


def test_a_merge_that_would_not_fit_is_not_begun(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=70_000))
    with pytest.raises(FamilyError, match=r"it takes 0\.2 MB, and 0\.1 MB are free"):
        export(family, {"bone-positive": 1.0}, tmp_path / "out", progress=lambda done, total: pytest.fail("begun"))
    assert not list(tmp_path.iterdir())


def test_a_compression(root: Path, tmp_path: Path) -> None:
    base = root / "base"
    reader, architecture = CheckpointReader(base), read_architecture(base)
    member = load_full(write_full_member(tmp_path / "full", base, 1), "m", reader, architecture)
    with little_room(), pytest.raises(FamilyError, match="cannot be written: File too large"):
        compress(member, reader, architecture, tmp_path / "out", rank=4)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_only_a_full_disk_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="No space left on device"), new_folder(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "no room")
    with pytest.raises(PermissionError), new_folder(tmp_path / "b"):
        raise PermissionError(errno.EACCES, "not yours")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_found_by_its_name(tmp_path: Path) -> None:
    for name in (".model-1[a].x.tmp", ".model-1[a].y.tmp", ".model-1a.x.tmp", "model-1[a].x.tmp"):
        (tmp_path / name).mkdir()
    forget_unfinished(tmp_path / "model-1[a]")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model-1a.x.tmp", "model-1[a].x.tmp"]
