"""Where a family lies: what a name, a path or a repository of the hub means. Imports nothing heavy, so that a wrong
name is told at once."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from ladle.merging.checkpoints.hub import Progress, family_from_hub, is_hub_id
from ladle.merging.exceptions import FamilyError, did_you_mean

MANIFEST_NAME = "family.toml"
GROUP = "ladle.families"
"""Entry points of distributions that bring families: NAME = "PACKAGE", where NAME is a folder of the package's."""
_OURS = "pip install ladle-families, or in a checkout: pip install ./families"


def find_manifest(name_or_path: str | Path, progress: Progress | None = None) -> Path:
    """The family.toml that a name, a path or a repository of the hub means. Raises FamilyError listing the installed
    ones."""
    manifest = local_manifest(name_or_path)
    if manifest is not None:
        return manifest
    given = str(name_or_path)
    try:
        folder = family_from_hub(given, progress)
    except FamilyError as error:
        raise FamilyError(given, f"{_nothing(given)}; {error.reason}") from error
    if not (folder / MANIFEST_NAME).is_file():
        raise FamilyError(given, f"this repository has no {MANIFEST_NAME}; `ladle init {given}` writes one of your own")
    return folder / MANIFEST_NAME


def local_manifest(name_or_path: str | Path) -> Path | None:
    """The family.toml that a name or a path means, without asking the hub; None for what can only be one of its
    repositories. Raises FamilyError."""
    given = str(name_or_path)
    path = Path(name_or_path).expanduser()
    # The folder is resolved and the file is not: in the hub's cache files are links to where no members lie.
    if path.is_file():
        return path.parent.resolve() / path.name
    installed = installed_families()
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return path.resolve() / MANIFEST_NAME
        # A folder that happens to be called like an installed family does not hide it.
        if given not in installed:
            reason = "no such file; a family is a folder with a family.toml, which `ladle init` writes"
            raise FamilyError(path / MANIFEST_NAME, reason)
    if given in installed:
        return _installed(given)
    if not isinstance(name_or_path, str) or not is_hub_id(given) or Path(given).parent.is_dir():
        raise FamilyError(path, _nothing(given))
    return None


def _nothing(given: str) -> str:
    installed = installed_families()
    if not installed:
        return f"neither a folder with a {MANIFEST_NAME} nor an installed family; none is installed: {_OURS}"
    known, slip = ", ".join(sorted(installed)), did_you_mean(given, installed)
    return f"neither a folder with a {MANIFEST_NAME} nor an installed family{slip}; installed: {known}"


def installed_families() -> dict[str, Path]:
    """family.toml by name of the families that distributions bring, as they were when it was first asked for."""
    return {name: manifests[0] for name, manifests in _manifests().items()}


@cache
def _manifests() -> Mapping[str, list[Path]]:
    """The manifests of each name; packages are found, and nothing of them is executed."""
    found: dict[str, list[Path]] = {}
    for entry in entry_points(group=GROUP):
        # A package within another one would be looked for by importing the outer one.
        spec = find_spec(entry.module) if "." not in entry.module else None
        for folder in () if spec is None else spec.submodule_search_locations or ():
            manifest = Path(folder).resolve() / entry.name / MANIFEST_NAME
            if manifest.is_file() and manifest not in found.setdefault(entry.name, []):
                found[entry.name].append(manifest)
    return {name: manifests for name, manifests in found.items() if manifests}


def _installed(name: str) -> Path:
    """The manifest of an installed family. Raises FamilyError where several distributions bring one of this name."""
    first, *others = _manifests()[name]
    if others:
        raise FamilyError(name, f"several distributions bring a family of this name: {first}, {others[0]}")
    return first
