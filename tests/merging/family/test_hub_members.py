"""Families, bases and members by the names of repositories on the hub, and paths with ``~``."""

from pathlib import Path

import pytest
import torch
from hub_cache import put, use_cache
from tiny_models import write_family, write_lora_member

from ladle.merging.checkpoints.member_folder import member_folder
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.family.place import find_manifest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_cache(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    return write_family(tmp_path / "family", "llama", seed, n=2)


def named(root: Path, **places: str) -> Path:
    """The family with other places for its members, by the last part of their folders."""
    file = root / "family.toml"
    text = file.read_text()
    for member, place in places.items():
        text = text.replace(f'"adapters/{member.replace("_", "-")}"', f'"{place}"').replace(f'"{member}"', f'"{place}"')
    file.write_text(text)
    return root


def test_members_may_be_repositories_at_a_revision(root: Path, cache: Path, tmp_path: Path, seed: int) -> None:
    put(cache, "org/simple", root / "adapters" / "only-simple")
    other = write_lora_member(tmp_path / "other", root / "base", seed + 77)
    put(cache, "org/simple", other, "beef", "v2")
    put(cache, "org/base", root / "base", "babe", "r1")
    plain = load_family(root)
    family = load_family(named(root, only_simple="org/simple", base="org/base@r1"))
    assert family.base_revision == plain.base_revision
    for module, delta in plain.low_rank["only-simple"].modules.items():
        assert torch.equal(family.low_rank["only-simple"].modules[module].a, delta.a)
    file = root / "family.toml"
    for revision in ("v2", "beef".ljust(40, "0")):
        text = file.read_text()
        file.write_text(text.replace('"org/simple"', f'"org/simple@{revision}"'))
        again = load_family(root)
        file.write_text(text)
        assert again.low_rank["only-simple"].path.name.startswith("beef")
        assert set(again.low_rank["only-simple"].modules) == set(family.low_rank["only-simple"].modules)
        name = next(iter(family.low_rank["only-simple"].modules))
        a = again.low_rank["only-simple"].modules[name].a
        assert a.shape != family.low_rank["only-simple"].modules[name].a.shape or not torch.equal(
            a, family.low_rank["only-simple"].modules[name].a
        )


def test_a_family_may_be_a_repository(root: Path, cache: Path) -> None:
    snapshot = put(cache, "org/kin", root)
    put(cache, "org/kin", root, "feed", "dev")
    for name in ("org/kin", "org/kin@main"):
        family = load_family(name)
        assert family.root == snapshot and set(family.low_rank) == {
            "bone-positive", "bone-simple", "only-positive", "only-simple"
        }  # fmt: skip
    assert find_manifest("org/kin@dev").parent.name.startswith("feed")
    # The snapshot's own path, where family.toml is a link to where nothing else lies.
    assert load_family(snapshot).base_revision == family.base_revision


def test_paths_may_begin_at_home(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lora_member(tmp_path / "mine", root / "base", seed)
    (tmp_path / "base").symlink_to(root / "base")
    family = load_family(named(root, only_simple="~/mine", base="~/base"))
    assert family.low_rank["only-simple"].path == tmp_path / "mine"
    assert find_manifest(f"~/{root.name}") == root / "family.toml"
    with pytest.raises(FamilyError, match="no such folder"):
        member_folder("~nobody-of-this-name/mine", root)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("adapters/missing", "no such folder [^,]*$"),
        ("org/missing", "no such folder .* nor a repository"),
        ("org/simple@v9", "no such folder .* nor a repository"),
        ("org/simple/deep", "no such folder [^,]*$"),
    ],
)
def test_what_is_nowhere_is_named(root: Path, cache: Path, place: str, reason: str) -> None:
    put(cache, "org/simple", root / "adapters" / "only-simple")
    with pytest.raises(FamilyError, match=f"family.toml: policy 'only-simple': {reason}"):
        load_family(named(root, only_simple=place))


def test_a_repository_without_a_manifest_says_so(root: Path, cache: Path) -> None:
    put(cache, "org/base", root / "base")
    with pytest.raises(FamilyError, match="org/base: this repository has no family.toml; `ladle init org/base`"):
        load_family("org/base")
    with pytest.raises(FamilyError, match="installed: demo.*nor a repository"):
        load_family("org/none")
