"""Reading a folder of safetensors, one file or sharded, without loading what is not asked for."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ladle.merging.errors import FamilyError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointReader:
    """The tensors of one checkpoint folder, memory-mapped.

    Raises:
        FamilyError: no safetensors (pickles are never read), an unreadable file, a shard or tensor that the index
            names but that is missing, a dtype that is not supported.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[Path, Any] = {}  # open memory maps; they stay open so pages are faulted in once only
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for file, expected in _shards(self.folder):
            self._open(file, expected)

    def _open(self, file: Path, expected: set[str] | None) -> None:
        header = read_header(file)
        try:
            self._files[file] = safe_open(file, framework="pt")  # also validates every entry of the header
        except (OSError, SafetensorError) as error:
            raise FamilyError(file, f"cannot be read as safetensors: {error}") from None
        for name in sorted(expected - header.keys()) if expected is not None else ():
            raise FamilyError(file, f"the index {INDEX} names this tensor, but the shard lacks it", name)
        for name in sorted(header):
            if expected is not None and name not in expected:
                continue
            code = header[name]["dtype"]
            if code not in _DTYPES:
                raise FamilyError(file, f"dtype {code} is not supported; known: {', '.join(_DTYPES)}", name)
            self._where[name] = file
            self._shapes[name] = tuple(header[name]["shape"])
            self._dtypes[name] = _DTYPES[code]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._where))

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, sorted."""
        return tuple(sorted(self._files))

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._where)

    def file_of(self, name: str) -> Path:
        """The file that holds ``name``."""
        return self._where[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, from the header alone."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Dtype, from the header alone."""
        return self._dtypes[name]

    def numel(self) -> int:
        """Number of parameters in all tensors."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(math.prod(self._shapes[name]) * self._dtypes[name].itemsize for name in self._where)

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the memory map: cheap, read-only by convention (writing would not reach the file)."""
        tensor: torch.Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def check_finite(self) -> None:
        """Read everything once. Raises FamilyError at the first NaN or infinity."""
        for name in self.names:
            require_finite(self.tensor(name), self._where[name], name)


def require_finite(tensor: torch.Tensor, file: Path, name: str) -> None:
    """Raise FamilyError if ``tensor`` holds NaN or infinity."""
    # One sum decides for nearly every tensor and allocates nothing, unlike isfinite(); a sum may overflow where the
    # values are finite, so only a sum that is not finite is looked at closely.
    if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float32).item()):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise FamilyError(file, f"{bad} of {tensor.numel()} values are NaN or infinite", name)


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The JSON header of a safetensors file: dtype, shape and data_offsets by tensor.

    Raises:
        FamilyError: missing, truncated or malformed.
    """
    try:
        with file.open("rb") as stream:
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
    """A JSON object from ``file``. Raises FamilyError when missing, unreadable or no object."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FamilyError(file, "no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FamilyError(file, f"cannot be read as JSON: {error}") from None
    if not isinstance(document, Mapping):
        raise FamilyError(file, "must hold a JSON object")
    return dict(document)


def has_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds the safetensors of a checkpoint, in one file or in shards."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _shards(folder: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """(file, the names the index expects in it or None) of every safetensors file of a checkpoint."""
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FamilyError(index, "has no weight_map")
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise FamilyError(index, f"shard {shard!r} must be a plain file name beside the index")
            yield folder / shard, {name for name, file in weight_map.items() if file == shard}
    elif (folder / SINGLE).is_file():
        yield folder / SINGLE, None
    else:
        pickles = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
        hint = f"; {pickles[0]} is a pickle, which is never loaded" if pickles else ""
        raise FamilyError(folder, f"no {SINGLE} and no {INDEX} in this folder{hint}")
