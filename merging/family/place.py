"""Where a family lies: what a name, a path or a repository of the hub means. Imports nothing heavy, so that a wrong
name is told at once."""

from importlib import resources
from pathlib import Path

from ladle.merging.checkpoints.hub import Progress, family_from_hub, is_hub_id
from ladle.merging.exceptions import FamilyError, did_you_mean

MANIFEST_NAME = "family.toml"


def find_manifest(name_or_path: str | Path, progress: Progress | None = None) -> Path:
    """The family.toml that a name, a path or a repository of the hub means. Raises FamilyError listing the built-in
    names."""
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
    built_in = built_in_families()
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return path.resolve() / MANIFEST_NAME
        # A folder that happens to be called like a built-in family does not hide it.
        if given not in built_in:
            reason = "no such file; a family is a folder with a family.toml, which `ladle init` writes"
            raise FamilyError(path / MANIFEST_NAME, reason)
    if given in built_in:
        return built_in[given]
    if not isinstance(name_or_path, str) or not is_hub_id(given) or Path(given).parent.is_dir():
        raise FamilyError(path, _nothing(given))
    return None


def _nothing(given: str) -> str:
    built_in = built_in_families()
    known, slip = ", ".join(sorted(built_in)) or "none", did_you_mean(given, built_in)
    return f"neither a folder with a {MANIFEST_NAME} nor a built-in family{slip}; built in: {known}"


def built_in_families() -> dict[str, Path]:
    """family.toml by name of the families that come with the package."""
    folder = resources.files("ladle.families")
    return {
        entry.name: Path(str(entry)) / MANIFEST_NAME
        for entry in folder.iterdir()
        if entry.is_dir() and (entry / MANIFEST_NAME).is_file()
    }
