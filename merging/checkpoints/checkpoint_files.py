"""Which safetensors files of a folder are its checkpoint, and which file has which tensor."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ladle.merging.exceptions import FamilyError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INDEX_SUFFIX = ".safetensors.index.json"
_ADAPTER = "adapter_model.safetensors"
_POINTER = b"version https://git-lfs.github.com/spec/"


def weight_files(folder: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """(file, the names of the tensors that count in it, None for all) of every safetensors file of a checkpoint.

    The order of precedence is transformers': the file that ``config.json`` names as ``transformers_weights``, the
    single file, the index. transformers never looks at an index beside a single file, and writes such folders itself:
    a checkpoint that was saved again with larger shards keeps its old index. So an index that is not complete is
    passed over there; one that is, and that means other tensors, makes the folder ambiguous.

    Raises:
        FamilyError: there are no safetensors, an index is broken, or index and single file are two checkpoints.
    """
    explicit = _explicit(folder)
    if explicit is not None:
        yield from _indexed(explicit) if explicit.name.endswith(_INDEX_SUFFIX) else [(explicit, None)]
    elif (folder / SINGLE).is_file():
        _refuse_two_checkpoints(folder)
        yield folder / SINGLE, None
    elif (folder / INDEX).is_file():
        yield from _indexed(folder / INDEX)
    else:
        raise FamilyError(folder, f"no {SINGLE} and no {INDEX} in this folder{_hint(folder)}")


def has_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds the safetensors of a checkpoint, in one file or in shards."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _explicit(folder: Path) -> Path | None:
    config = folder / "config.json"
    name = read_json(config).get("transformers_weights") if config.is_file() else None
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", _INDEX_SUFFIX)):
        reason = f"transformers_weights: {name!r} must be a .safetensors file, or an index of such, beside config.json"
        raise FamilyError(config, reason)
    return folder / name


def _indexed(index: Path) -> Iterator[tuple[Path, set[str]]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FamilyError(index, "has no weight_map")
    for shard in sorted(set(weight_map.values()), key=str):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise FamilyError(index, f"shard {shard!r} must be a plain file name beside the index")
        yield index.parent / shard, {name for name, file in weight_map.items() if file == shard}


def _refuse_two_checkpoints(folder: Path) -> None:
    """Raise FamilyError if the index beside the single file is complete and means other tensors than that file."""
    if not (folder / INDEX).is_file():
        return
    try:
        shards = [(file, names) for file, names in _indexed(folder / INDEX) if file.name != SINGLE]
        headers = {file: read_header(file) for file, _ in shards}
    except FamilyError:
        return
    # An index whose shards are missing or lack tensors is left over from before: transformers does not look at it
    # either.
    if not shards or any(not names <= headers[file].keys() for file, names in shards):
        return
    reason = f"another checkpoint than {folder / INDEX} beside it; remove the one that is not meant"
    named = {name for _, names in shards for name in names}
    try:
        with safe_open(folder / SINGLE, framework="pt") as single:
            whole = set(single.keys())
            if whole != named:
                other = sorted(whole ^ named)[0]
                raise FamilyError(folder / SINGLE, f"{reason} (only one of them has this tensor)", other)
            for file, names in shards:
                with safe_open(file, framework="pt") as shard:
                    for name in sorted(names):
                        one, other_one = single.get_tensor(name), shard.get_tensor(name)
                        if one.dtype != other_one.dtype or not one.equal(other_one):
                            raise FamilyError(folder / SINGLE, f"{reason} (this tensor differs)", name)
    except (OSError, SafetensorError) as error:
        raise FamilyError(folder / SINGLE, f"cannot be read as safetensors: {error}") from None


def _hint(folder: Path) -> str:
    """What is there instead, and what to do about it."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    variants = [name for name in names if name.endswith((".safetensors", _INDEX_SUFFIX)) and name != _ADAPTER]
    if variants:
        return f"; {variants[0]} is there: name it in config.json as transformers_weights"
    inside = [name for name in names if any((folder / name / file).is_file() for file in (SINGLE, INDEX, _ADAPTER))]
    if inside:
        return f"; name one of the folders in it that have: {', '.join(inside[:5])}"
    pickles = [name for name in names if name.endswith(".bin")]
    if not pickles:
        return ""
    load = f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')"
    command = f"from transformers import AutoModelForCausalLM as M; {load}"
    return f'; {pickles[0]} is a pickle, which is never loaded: convert it with `python -c "{command}"`'


def refuse_pointer(file: Path) -> None:
    """Raise FamilyError if ``file`` is what Git LFS leaves in the place of a file that was not fetched."""
    try:
        with file.open("rb") as stream:
            is_pointer = stream.read(len(_POINTER)) == _POINTER
    except OSError:
        return  # whoever reads it says why it cannot be read
    if is_pointer:
        raise FamilyError(file, "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The JSON header of a safetensors file: dtype, shape and data_offsets by tensor.

    Raises:
        FamilyError: missing, a Git LFS pointer, truncated or malformed.
    """
    refuse_pointer(file)
    try:
        with file.open("rb") as stream:
            # Eight bytes of length, then JSON. The length is checked first, so that of a broken file no gigabytes are
            # read.
            length = int.from_bytes(stream.read(8), "little")
            if length > min(file.stat().st_size, 100_000_000):
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        header.pop("__metadata__", None)
        return header
    except FileNotFoundError:
        raise FamilyError(file, "no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FamilyError(file, f"cannot be read as safetensors: {error}") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from ``file``. Raises FamilyError when missing, a Git LFS pointer, unreadable or no object."""
    refuse_pointer(file)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FamilyError(file, "no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FamilyError(file, f"cannot be read as JSON: {error}") from None
    if not isinstance(document, Mapping):
        raise FamilyError(file, "must hold a JSON object")
    return dict(document)
