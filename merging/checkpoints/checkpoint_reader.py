"""Reading a folder of safetensors, one file or sharded, without loading what is not asked for."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ladle.merging.checkpoints.checkpoint_files import (
    INDEX,
    SINGLE,
    has_checkpoint,
    read_header,
    read_json,
    weight_files,
)
from ladle.merging.exceptions import FamilyError

__all__ = ["INDEX", "SINGLE", "CheckpointReader", "has_checkpoint", "read_header", "read_json", "require_finite"]

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
    # Parts of quantised weights.
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


class CheckpointReader:
    """The tensors of one checkpoint folder, memory-mapped.

    Attributes:
        as_stored: the same, tensor by tensor of the files.

    Raises:
        FamilyError: no safetensors (pickles are never read), an unreadable file, a shard or tensor that the index
            names but that is missing, a dtype that is not supported.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.as_stored: CheckpointReader = self
        self._files: dict[Path, Any] = {}  # open memory maps; they stay open so pages are faulted in once only
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for file, expected in weight_files(self.folder):
            self._open(file, expected)

    def _open(self, file: Path, expected: set[str] | None) -> None:
        header = read_header(file)
        try:
            self._files[file] = safe_open(file, framework="pt")  # also validates every entry of the header
        except (OSError, SafetensorError) as error:
            raise FamilyError(file, f"cannot be read as safetensors: {error}") from None
        for name in sorted(expected - header.keys()) if expected is not None else ():
            raise FamilyError(file, "the index names this tensor, but the shard lacks it", name)
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
