"""Where a member lies: a folder beside its manifest or anywhere else, or a repository of the hub."""

from pathlib import Path

from ladle.merging.checkpoints.hub import Progress, is_hub_id, member_from_hub
from ladle.merging.exceptions import FamilyError


def member_folder(spec: str, root: Path, progress: Progress | None = None) -> Path:
    """The folder that ``spec`` means: relative to ``root``, absolute, beginning with ``~``, or, where there is no such
    folder, that of the repository ``ORG/NAME`` or ``ORG/NAME@REVISION``, downloaded once.

    Raises:
        FamilyError: there is neither.
    """
    try:
        path = root / Path(spec).expanduser()
    except RuntimeError:  # ~name of nobody
        path = root / spec
    if path.is_dir():
        return path
    # A path below a folder that is there is no repository's name.
    if not is_hub_id(spec) or (root / spec.partition("/")[0]).is_dir():
        raise FamilyError(path, f"no such folder {path}")
    try:
        return member_from_hub(spec, progress)
    except FamilyError as error:
        raise FamilyError(spec, f"no such folder {path}, and {error.reason}") from error
