"""Scalar heads of explicit values: one number from the last hidden state, after the final norm."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ladle.merging.checkpoints.reader import CheckpointReader, has_checkpoint, require_finite
from ladle.merging.errors import FamilyError
from ladle.merging.members.adapter import is_peft_folder

HEAD = "value_head.safetensors"
SCORE = "score.weight"
"""The head of a sequence classification checkpoint."""


@dataclass(frozen=True)
class ValueHead:
    """V(h) = weight . h + bias; ``weight`` [hidden] float32."""

    weight: torch.Tensor
    bias: float


def load_value_head(folder: Path, hidden: int) -> ValueHead:
    """The head of a member: ``value_head.safetensors`` with ``weight`` [hidden] or [1, hidden] and an optional ``bias``
    [1], or ``score.weight`` [1, hidden] inside a full checkpoint.

    Raises:
        FamilyError: naming file and tensor: there is no head or there are two, it has another width or more than one
            output, NaN or infinity.
    """
    file = folder / HEAD
    if not is_peft_folder(folder) and has_checkpoint(folder) and SCORE in (reader := CheckpointReader(folder)):
        if file.is_file():
            raise FamilyError(file, f"a second head: the checkpoint beside it holds {SCORE}")
        return ValueHead(_weight(reader.tensor(SCORE), reader.file_of(SCORE), SCORE, hidden), 0.0)
    if file.is_file():
        return _read(file, hidden)
    raise FamilyError(file, f"no such file, and no {SCORE} in a checkpoint; an explicit value needs a scalar head")


def _read(file: Path, hidden: int) -> ValueHead:
    try:
        with safe_open(file, framework="pt") as stream:
            names = list(stream.keys())
            tensors = {name: stream.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise FamilyError(file, f"cannot be read as safetensors: {error}") from None
    for name in tensors:
        if name not in ("weight", "bias"):
            raise FamilyError(file, "only weight and bias are expected", name)
    if "weight" not in tensors:
        raise FamilyError(file, "missing", "weight")
    return ValueHead(_weight(tensors["weight"], file, "weight", hidden), _bias(tensors.get("bias"), file))


def copy_value_head(source: Path, target: Path) -> None:
    """Write the scalar head of the checkpoint ``source``, if it has one, as a file beside the adapter ``target``."""
    if (source / HEAD).is_file():
        shutil.copyfile(source / HEAD, target / HEAD)
    elif SCORE in (reader := CheckpointReader(source)):
        save_file({"weight": reader.tensor(SCORE).contiguous()}, target / HEAD, metadata={"format": "pt"})


def _weight(tensor: torch.Tensor, file: Path, name: str, hidden: int) -> torch.Tensor:
    if tuple(tensor.shape) not in ((hidden,), (1, hidden)) or not tensor.is_floating_point():
        reason = f"{tensor.dtype} of shape {list(tensor.shape)}; one output over the model's {hidden} is needed"
        raise FamilyError(file, reason, name)
    require_finite(tensor, file, name)
    return tensor.reshape(hidden).float().clone()


def _bias(tensor: torch.Tensor | None, file: Path) -> float:
    if tensor is None:
        return 0.0
    if tensor.numel() != 1 or not tensor.is_floating_point():
        raise FamilyError(file, f"{tensor.dtype} of shape {list(tensor.shape)}; one number is needed", "bias")
    require_finite(tensor, file, "bias")
    return float(tensor)
