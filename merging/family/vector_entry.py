"""A new steering vector in a family: its file, and its entry in ``family.toml``."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import torch

from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.manifest import Manifest, load_manifest
from ladle.merging.members.steering_vector import save_vector, vector_file

FOLDER = "vectors"


def require_new(manifest: Manifest, root: Path, name: str, force: bool) -> Path:
    """The file that the vector ``name`` gets; with ``force`` that of the vector that has the name.

    Raises:
        InputError: the name is taken, or cannot be one.
    """
    vectors = {entry.name: entry for entry in manifest.vectors}
    taken = {entry.name for _, entry in manifest.members()} | {entry.name for entry in manifest.models}
    if name in taken - vectors.keys():
        raise InputError("name", name, "a name that no member or model of the family has")
    if not name.isascii() or not name or name[0] in ".-_" or not all(c.isalnum() or c in "._-" for c in name):
        raise InputError("name", name, "letters, digits, '.', '_' and '-', of which the first is a letter or a digit")
    file = root / FOLDER / f"{name}.safetensors"
    if name in vectors:
        file = vector_file(vectors[name].path, root) if force else file
        if not force:
            raise InputError("name", name, reason="the family has a vector of this name; --force overwrites it")
        if file.suffix != ".safetensors":
            raise InputError("name", name, reason=f"its vector is {file.name}, which is not overwritten")
    elif file.exists() and not force:
        raise InputError("name", name, reason=f"{file} is there already; --force overwrites it")
    return file


def write_vector(
    manifest_file: Path, file: Path, name: str, directions: torch.Tensor, facts: Mapping[str, str]
) -> None:
    """Write ``directions`` [layers, hidden] to ``file``, in float16 where that holds them, and name them in
    ``manifest_file`` if it does not yet.

    Raises:
        FamilyError: NaN or infinity, or the manifest would not be valid with the entry; nothing is changed then.
        OSError: it cannot be written.
    """
    if not torch.isfinite(directions).all():
        raise FamilyError(file, "the directions have NaN or infinity, and were not written")
    half = directions.half()
    kept = half if torch.isfinite(half).all() else directions.float()
    text = manifest_file.read_text(encoding="utf-8")
    named = any(entry.get("name") == name for entry in tomllib.loads(text).get("vectors", []))
    staged = manifest_file.with_name(f".{manifest_file.name}.{os.getpid()}.toml")
    if not named:
        # JSON's strings are TOML's.
        path = json.dumps(os.path.relpath(file, manifest_file.parent))
        entry = f"\n[[vectors]]\nname = {json.dumps(name)}\npath = {path}\n"
        staged.write_text(text + ("" if text.endswith("\n") else "\n") + entry, encoding="utf-8")
    try:
        # The staged manifest is loaded before anything is replaced, and the vector goes before it: at no time does the
        # manifest name a file that is not there.
        if not named:
            load_manifest(staged)
        file.parent.mkdir(exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_vector(beside, kept, facts)
        os.replace(beside, file)
        if not named:
            os.replace(staged, manifest_file)
    finally:
        staged.unlink(missing_ok=True)
