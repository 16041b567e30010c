"""What tools/release.py checks before it tags."""

import importlib.util
import subprocess
import tarfile
import zipfile
from datetime import date
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 5, 4)
METADATA = "Metadata-Version: 2.4\nName: ladle\nVersion: 1.2.0\nDescription-Content-Type: text/markdown\n\n# Ladle\n"


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tool_release", ROOT / "tools" / "release.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that may be released."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ladle"\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changes\n\n## 1.2.0, 2026-05-03\n- more\n\n## 1.1.0, 2026-01-01\n- less\n"
    )
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    return tmp_path


def test_a_clean_dated_untagged_checkout_is_released(release: ModuleType, checkout: Path) -> None:
    assert release.objections(checkout, TODAY) == []


def test_changes_and_an_old_tag_are_refused(release: ModuleType, checkout: Path) -> None:
    git(checkout, "tag", "v1.2.0")
    (checkout / "new.py").write_text("")
    changes, tagged = release.objections(checkout, TODAY)
    assert "new.py" in changes and "v1.2.0 is tagged already" in tagged


def test_versions_must_agree(release: ModuleType, checkout: Path) -> None:
    (checkout / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.1.0\n")
    assert "CITATION.cff states version 1.1.0, pyproject.toml 1.2.0" in release.objections(checkout, TODAY)


def test_the_families_have_the_same_version(release: ModuleType, checkout: Path) -> None:
    (checkout / "families").mkdir()
    (checkout / "families" / "pyproject.toml").write_text('[project]\nname = "ladle-families"\nversion = "1.1.0"\n')
    reasons = release.objections(checkout, TODAY)
    assert "families/pyproject.toml states version 1.1.0, pyproject.toml 1.2.0" in reasons


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("## 1.1.0, 2026-01-01\n- x\n", 'no section "## 1.2.0, 2026-05-04"'),
        ("## 1.2.01, 2026-01-01\n- x\n", "no section"),
        ("## 1.2.0\n- x\n", "has no date"),
        ("## 1.2.0, not released yet\n- x\n", "has no date"),
        ("## 1.2.0, 2026-05-05\n- x\n", "in the future"),
        ("## 1.2.0, 2026-05-04\n\n## 1.1.0, 2026-01-01\n- x\n", "is empty"),
    ],
)
def test_the_changelog_must_have_a_dated_section(release: ModuleType, checkout: Path, text: str, reason: str) -> None:
    (checkout / "CHANGELOG.md").write_text(text)
    assert any(reason in objection for objection in release.objections(checkout, TODAY))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("", "", ""),
        ("Version: 1.2.0", "Version: 1.1.0", "state version 1.1.0"),
        ("Version: 1.2.0", "Version: soon", "version"),
        ("text/markdown", "text/plain", "Markdown"),
        ("# Ladle\n", "", "Markdown"),
    ],
)
def test_metadata_are_read_from_sdist_and_wheel(
    release: ModuleType, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    raw = METADATA.replace(f"\n{old}" if old.startswith("Version") else old, f"\n{new}" if new.startswith("V") else new)
    wheel, sdist = tmp_path / "ladle-1.2.0-py3-none-any.whl", tmp_path / "ladle-1.2.0.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("ladle-1.2.0.dist-info/METADATA", raw)
    with tarfile.open(sdist, "w:gz") as archive:
        entry = tarfile.TarInfo("ladle-1.2.0/PKG-INFO")
        entry.size = len(raw)
        archive.addfile(entry, BytesIO(raw.encode()))
    for distribution in (wheel, sdist):
        found = release.objections_to_metadata(distribution, "1.2.0")
        assert bool(found) == bool(reason) and all(reason in objection for objection in found), found
