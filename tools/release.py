"""Release the version that pyproject.toml states: check, build, try what was built, tag.

    python tools/release.py --dry-run     # everything but the tag, whatever the checks say
    python tools/release.py               # sdists and wheels in dist/, and the tag vVERSION

They are those of Ladle and of its built-in families, made of the commit and not of the working tree. Nothing is
uploaded and nothing is pushed: the last line says what is left to do.
"""

import argparse
import email.parser
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from datetime import date
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).resolve().parent.parent


def stated_version(root: Path) -> str:
    """The version in pyproject.toml."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def _parts(root: Path) -> list[Path]:
    """The folders that distributions are built from: Ladle's, and that of the built-in families."""
    return [root, *(root / "families" for file in [root / "families" / "pyproject.toml"] if file.is_file())]


def objections(root: Path, today: date) -> list[str]:
    """What keeps the checkout ``root`` from being released, a sentence each; empty where nothing does."""
    version = stated_version(root)
    reasons = []
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        reasons.append(f"the working tree has changes: {', '.join(line[3:] for line in changed[:5])}; commit them")
    if _git(root, "tag", "--list", f"v{version}"):
        reasons.append(f"v{version} is tagged already; raise project.version in pyproject.toml")
    reasons += _objections_to_changelog((root / "CHANGELOG.md").read_text(), version, today)
    cited = re.search(r"^version: *(\S+)", (root / "CITATION.cff").read_text(), re.MULTILINE)
    if cited is None or cited[1].strip("\"'") != version:
        reasons.append(f"CITATION.cff states version {cited[1] if cited else 'nothing'}, pyproject.toml {version}")
    for part in _parts(root)[1:]:
        if stated_version(part) != version:
            reasons.append(
                f"{part.name}/pyproject.toml states version {stated_version(part)}, pyproject.toml {version}"
            )
    return reasons


def _objections_to_changelog(text: str, version: str, today: date) -> list[str]:
    heading = re.search(rf"^## {re.escape(version)}(?:, *(.*?))?\s*$", text, re.MULTILINE)
    if heading is None:
        return [f'CHANGELOG.md has no section "## {version}, {today}"']
    try:
        day = date.fromisoformat(heading[1] or "")
    except ValueError:
        return [f'CHANGELOG.md: "{heading[0].strip()}" has no date; write "## {version}, {today}"']
    if day > today:
        return [f"CHANGELOG.md: {day} is in the future"]
    section = re.split(r"^## ", text[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    return [] if section.strip() else [f"CHANGELOG.md: the section of {version} is empty"]


def objections_to_metadata(distribution: Path, version: str) -> list[str]:
    """What is wrong with the core metadata of an sdist or wheel, as the packaging standards define them."""
    if distribution.suffix == ".whl":
        with zipfile.ZipFile(distribution) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            raw = wheel.read(name)
    else:
        with tarfile.open(distribution) as sdist:
            file = sdist.extractfile(f"{distribution.name.removesuffix('.tar.gz')}/PKG-INFO")
            assert file is not None
            raw = file.read()
    try:
        metadata = Metadata.from_email(raw, validate=True)
    except ExceptionGroup as group:
        return [f"{distribution.name}: {error}" for error in group.exceptions]
    reasons = []
    if str(metadata.version) != version:
        reasons.append(f"{distribution.name}: its metadata state version {metadata.version}, pyproject.toml {version}")
    # An index shows the description as what its type says.
    if not metadata.description or "text/markdown" not in str(email.parser.BytesParser().parsebytes(raw)):
        reasons.append(f"{distribution.name}: its metadata have no description in Markdown")
    return reasons


def build(root: Path, target: Path) -> list[Path]:
    """Make sdists and wheels of the commit that is checked out."""
    shutil.rmtree(target, ignore_errors=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="ladle-release-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
            tree.extractall(folder, filter="data")
        for part in _parts(Path(folder)):
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(part)]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return sorted(target.iterdir())


def try_wheel(wheel: Path, version: str, constraints: Path) -> list[str]:
    """What is wrong with the command line of a wheel that is installed where nothing else is."""
    with tempfile.TemporaryDirectory(prefix="ladle-release-") as folder:
        venv.create(folder, with_pip=False)
        programs = Path(folder) / "bin"
        install = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet"]
        install += ["--disable-pip-version-check", "--constraint", str(constraints), f"{wheel}[cli]"]
        subprocess.run(install, check=True)
        said = subprocess.run(
            [programs / "ladle", "--version"], capture_output=True, text=True, cwd=folder, check=False
        )
    if said.returncode or version not in said.stdout.split():
        return [f"`ladle --version` of the installed wheel says {(said.stdout + said.stderr).strip()!r}"]
    return []


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip("\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check, build, try and tag the version that pyproject.toml states.")
    parser.add_argument("--dry-run", action="store_true", help="Do everything but the tag, whatever the checks say.")
    dry = parser.parse_args(arguments).dry_run
    version = stated_version(ROOT)
    reasons = objections(ROOT, date.today())
    if not reasons or dry:
        distributions = build(ROOT, ROOT / "dist")
        for distribution in distributions:
            reasons += objections_to_metadata(distribution, version)
        (wheel,) = (path for path in distributions if path.suffix == ".whl" and path.name.startswith("ladle-"))
        reasons += try_wheel(wheel, version, ROOT / "constraints.txt")
        print(*(f"built dist/{path.name}, {path.stat().st_size / 2**20:.1f} MiB" for path in distributions), sep="\n")
    for objection in reasons:
        print(f"error: {objection}", file=sys.stderr)
    if reasons:
        return 1
    if dry:
        print(f"ladle {version} is ready to be released; nothing was tagged")
        return 0
    _git(ROOT, "tag", "--annotate", f"v{version}", "--message", f"Ladle {version}")
    print(f"tagged v{version}. What is left: push the tag, and upload what is in dist/")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(map(str, error.cmd[:4]))} failed (exit code {error.returncode}); see above")
