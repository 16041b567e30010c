"""Folders that appear complete or not at all."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ladle.merging.exceptions import FamilyError, InputError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how the safetensors library says why a file could not be written
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_space(folder: Path, size: int) -> None:
    """Raise FamilyError unless ``size`` bytes are free for the new ``folder``: before minutes are spent on them."""
    free = shutil.disk_usage(folder).free
    if free < size:
        reason = f"cannot be written: it takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free on this disk"
        raise FamilyError(folder.parent, reason)


def forget_unfinished(target: Path) -> None:
    """Remove what processes that were killed left of ``target``. Nobody else may be making it."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _number(error: SafetensorError) -> int | None:
    match = _OS_ERROR.search(str(error))
    return int(match[1]) if match else None


def require_free(target: str | Path, field: str = "out") -> Path:
    """``target`` as a Path. Raises InputError naming ``field`` unless it does not exist or is an empty folder."""
    path = Path(target)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(field, str(target), "a folder that does not exist yet or is empty")
    return path


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` by one rename when the block ends without error.

    ``target`` must not exist or be empty. Whatever happens, nothing half-written stays behind.

    Raises:
        FamilyError: the disk is full, or a file is larger than is allowed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        # mkdtemp and safetensors both write for the owner alone; a result is as readable as any file one makes.
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _number(error)
        if number not in _NO_ROOM:
            raise
        raise FamilyError(target, f"cannot be written: {os.strerror(number)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
