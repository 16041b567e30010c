"""Files beside ``family.toml`` that hold what was measured on a family: they count as long as its members stay."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ladle.merging.exceptions import FamilyError

_WHOLE = 256 << 20
"""Bytes up to which a member's file counts with its contents; of a larger one, which takes long to read, the size."""
Measured = TypeVar("Measured", bound=BaseModel)


def fingerprint_of(folders: Iterable[Path], files: Iterable[Path] = ()) -> str:
    """Sixteen hexadecimal digits that change when the safetensors in ``folders`` do, or one of the small ``files``."""
    digest = hashlib.sha256()
    for folder in sorted(set(folders)):
        for file in sorted(folder.glob("*.safetensors")):
            size = file.stat().st_size
            digest.update(f"{folder.name}/{file.name}:{size}\n".encode())
            if size <= _WHOLE:
                digest.update(file.read_bytes())
    for file in files:
        digest.update(file.read_bytes() if file.exists() else b"none")
    return digest.hexdigest()[:16]


def read_measured(file: Path, kind: type[Measured]) -> Measured | None:
    """What ``file`` holds; None where there is no such file.

    Raises:
        FamilyError: it cannot be read, or is no ``kind``.
    """
    if not file.exists():
        return None
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FamilyError(file, f"cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise FamilyError(file, f"{where}: {first['msg']}") from None


def write_measured(measured: BaseModel, file: Path) -> Path | None:
    """Write it, whole or not at all, and keep what was there before as ``NAME.bak``, whose path is returned; None where
    nothing was there, or the same. Raises OSError."""
    text = json.dumps(_short(measured.model_dump()), indent=1)
    part = file.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    backup = file.with_name(file.name + ".bak")
    if not file.exists() or file.read_bytes() == part.read_bytes():
        part.replace(file)
        return None
    shutil.copyfile(file, backup)
    part.replace(file)
    return backup


def _short(value: Any) -> Any:
    """Numbers with nine digits: more than a sweep can tell, and short enough for a file that people look at."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else value
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, (list, tuple)) else value
