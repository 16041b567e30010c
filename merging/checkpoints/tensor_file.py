"""One safetensors file read whole, as adapters and heads are: small, and copied so that the file may be replaced."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ladle.merging.checkpoints.checkpoint_files import refuse_pointer
from ladle.merging.exceptions import FamilyError


def read_tensors(file: Path, absent: str = "") -> dict[str, torch.Tensor]:
    """The tensors of ``file`` by name, on the CPU, in the dtypes that they were saved in.

    Args:
        absent: what the reason says, after "no such file", where ``file`` is missing.

    Raises:
        FamilyError: missing, a Git LFS pointer, or no safetensors.
    """
    if not file.is_file():
        raise FamilyError(file, f"no such file{absent}")
    refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in list(stream.keys())}
    except (OSError, SafetensorError) as error:
        raise FamilyError(file, f"cannot be read as safetensors: {error}") from None
