"""Scalar heads of explicit values: one number from the last hidden state, after the final norm."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader, has_checkpoint, require_finite
from ladle.merging.checkpoints.tensor_file import read_tensors
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import WEIGHTS, is_peft_folder
from ladle.merging.members.adapter_tensors import read_head
from ladle.merging.members.head_names import EXPECTED, HEAD_NAMES

HEAD = "value_head.safetensors"


@dataclass(frozen=True)
class ValueHead:
    """V(h) = weight . h + bias.

    Attributes:
        weight: [hidden] float32.
        bias: in the unit of the value.
    """

    weight: torch.Tensor
    bias: float


def load_value_head(folder: Path, hidden: int) -> ValueHead:
    """The head of a member: in ``value_head.safetensors``, as ``weight`` [hidden] or [1, hidden] and an optional
    ``bias`` [1], or beside the other tensors of its checkpoint or adapter, under the names of ``HEAD_NAMES``.

    Raises:
        FamilyError: naming file and tensor: there is no head or there are two, it has another width or more than one
            output, NaN or infinity.
    """
    head = find_head(folder)
    if head is None:
        reason = f"no such file, and the weights beside it hold no {EXPECTED}; an explicit value needs a scalar head"
        if (pickle := folder / "pytorch_model.bin").is_file():
            reason += f" ({pickle.name} is a pickle, which is never loaded; save the head as {HEAD})"
        raise FamilyError(folder / HEAD, reason)
    # Exactly one weight, and at most one bias of the same head; anything else beside them is refused, as it would be
    # left out of the value.
    file, tensors = head
    parts: dict[str, str] = {}
    for name in sorted(tensors):
        part = name if name in ("weight", "bias") else HEAD_NAMES.get(name)
        if part is None:
            raise FamilyError(file, f"only weight and bias are expected, or {EXPECTED}", name)
        if part in parts:
            raise FamilyError(file, f"a second head: {parts[part]} is there too", name)
        parts[part] = name
    if "weight" not in parts:
        raise FamilyError(file, "missing", parts["bias"].removesuffix("bias") + "weight" if parts else "weight")
    if "bias" in parts and parts["bias"].rpartition(".")[0] != parts["weight"].rpartition(".")[0]:
        raise FamilyError(file, f"a bias of another head than {parts['weight']}", parts["bias"])
    weight = _weight(tensors[parts["weight"]], file, parts["weight"], hidden)
    return ValueHead(weight, _bias(tensors[parts["bias"]], file, parts["bias"]) if "bias" in parts else 0.0)


def find_head(folder: Path) -> tuple[Path, dict[str, torch.Tensor]] | None:
    """(file, tensors) of the scalar head in ``folder``; None where there is none. Raises FamilyError for two."""
    file = folder / HEAD
    # A head may lie in a file of its own, or among the tensors of an adapter or a checkpoint; in two places it is
    # ambiguous.
    inner: tuple[Path, dict[str, torch.Tensor]] | None = None
    if is_peft_folder(folder):
        if (folder / WEIGHTS).is_file() and (tensors := read_head(folder / WEIGHTS)):
            inner = folder / WEIGHTS, tensors
    elif has_checkpoint(folder):
        reader = CheckpointReader(folder)
        if names := [name for name in reader.names if name in HEAD_NAMES]:
            inner = reader.file_of(names[0]), {name: reader.tensor(name) for name in names}
    if inner is not None and file.is_file():
        raise FamilyError(file, f"a second head: {inner[0].name} beside it holds {sorted(inner[1])[0]}")
    if inner is not None or not file.is_file():
        return inner
    return file, read_tensors(file)


def copy_value_head(source: Path, target: Path) -> None:
    """Write the scalar head of the checkpoint ``source``, if it has one, as a file beside the adapter ``target``."""
    if (source / HEAD).is_file():
        shutil.copyfile(source / HEAD, target / HEAD)
    elif (head := find_head(source)) is not None:
        tensors = {HEAD_NAMES[name]: tensor.contiguous() for name, tensor in head[1].items()}
        save_file(tensors, target / HEAD, metadata={"format": "pt"})


def _weight(tensor: torch.Tensor, file: Path, name: str, hidden: int) -> torch.Tensor:
    if tuple(tensor.shape) not in ((hidden,), (1, hidden)) or not tensor.is_floating_point():
        reason = f"{tensor.dtype} of shape {list(tensor.shape)}; one output over the model's {hidden} is needed"
        raise FamilyError(file, reason, name)
    require_finite(tensor, file, name)
    return tensor.reshape(hidden).float().clone()


def _bias(tensor: torch.Tensor, file: Path, name: str) -> float:
    if tensor.numel() != 1 or not tensor.is_floating_point():
        raise FamilyError(file, f"{tensor.dtype} of shape {list(tensor.shape)}; one number is needed", name)
    require_finite(tensor, file, name)
    return float(tensor)
