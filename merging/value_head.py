"""Scalar heads of explicit values: one number from the last hidden state, after the final norm."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ladle.merging.checkpoint import CheckpointReader, require_finite
from ladle.merging.errors import FamilyError

HEAD = "value_head.safetensors"
SCORE = "score.weight"
"""The head of a sequence classification checkpoint."""


@dataclass(frozen=True)
class ValueHead:
    """V(h) = weight . h + bias; ``weight`` [hidden] float32."""

    weight: torch.Tensor
    bias: float


def load_value_head(folder: Path, hidden: int) -> ValueHead:
    """The head beside an adapter or checkpoint: ``value_head.safetensors`` with ``weight`` [hidden] or [1, hidden] and
    an optional ``bias`` [1], or ``score.weight`` [1, hidden] inside a full checkpoint.

    Raises:
        FamilyError: naming file and tensor: there is no head, it has another width or more than one output, NaN or
            infinity.
    """
    file = folder / HEAD
    if file.is_file():
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
    if any(folder.glob("*.safetensors")) and not (folder / "adapter_config.json").is_file():
        reader = CheckpointReader(folder)
        if SCORE in reader:
            return ValueHead(_weight(reader.tensor(SCORE), reader.file_of(SCORE), SCORE, hidden), 0.0)
    raise FamilyError(file, f"no such file, and no {SCORE} in a checkpoint; an explicit value needs a scalar head")


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
