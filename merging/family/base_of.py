"""The base that a family, or the name of a model, means, without its members."""

from pathlib import Path

from ladle.merging.checkpoints.base_checkpoint import Progress, resolve_base
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.manifest import load_manifest
from ladle.merging.family.place import local_manifest


def base_of(name: str, cache_dir: str | Path | None = None, progress: Progress | None = None) -> tuple[Path, str]:
    """(folder of its checkpoint, what its manifest or the caller calls it).

    Args:
        name: a built-in family, a folder with ``family.toml``, or whatever ``resolve_base`` takes.

    Raises:
        FamilyError: there is neither.
    """
    try:
        file = local_manifest(name)
    except FamilyError:
        file = None  # a folder without a manifest may be a base
    if file is None:
        return resolve_base(name, cache_dir, progress), name
    spec = load_manifest(file).base.model
    return resolve_base(spec, cache_dir, progress, file.parent), spec
