"""Folders that appear complete or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ladle.merging.errors import InputError


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
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
