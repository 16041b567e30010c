"""The router of a family: a language model with a linear head that has one score for every expert."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ladle.merging.checkpoints.checkpoint_reader import require_finite
from ladle.merging.checkpoints.tensor_file import read_tensors
from ladle.merging.exceptions import FamilyError

ROUTER_HEAD = "router_head.safetensors"
_TENSORS = ("weight", "bias", "defer", "defer_bias")


@dataclass(frozen=True)
class RouterHead:
    """Scores of the experts w = weight h + bias from the last hidden state h, after the final norm.

    FusionRoute (arXiv 2601.05106) takes the expert with the greatest score; the paper's head has no bias.

    Attributes:
        weight: ``[experts, hidden]`` float32, in the order of the family's experts.
        bias: ``[experts]`` float32; zeros where the file has none.
        defer: ``[hidden]`` float32, the deferral logit's weights: d = defer . h + defer_bias, and sigmoid(d) is the
            probability that the next token is an expert's (Co-LLM, arXiv 2403.03870); None for a router without.
        defer_bias: 0 where the file has none.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    defer: torch.Tensor | None = None
    defer_bias: float = 0.0


@dataclass(frozen=True)
class RouterMember:
    """A family's router as methods see it.

    Attributes:
        name: of the router.
        member: the loaded member whose weights it has; an entry that names an earlier one's folder shares its weights.
        model: the model it was grown from: "" for the base, or a name of ``[[models]]``.
    """

    name: str
    member: str
    head: RouterHead
    model: str = ""


def load_router_head(folder: Path, experts: int, hidden: int) -> RouterHead:
    """Read ``router_head.safetensors``: ``weight`` [experts, hidden] and, where there are such, ``bias`` [experts],
    ``defer`` [hidden], ``defer_bias`` [1], of any float dtype.

    Args:
        folder: the router's.
        experts: how many the family has; row i scores the i-th.
        hidden: width of the model's last hidden state.

    Raises:
        FamilyError: naming file and tensor: there is no such file, another number of rows, another width, a dtype that
            is not float, NaN or infinity, a tensor that is not expected.
    """
    file = folder / ROUTER_HEAD
    tensors = read_tensors(file, "; a router needs a head with one row for each expert")
    for name in sorted(tensors):
        if name not in _TENSORS:
            raise FamilyError(file, f"only {', '.join(_TENSORS)} are expected", name)
    if "weight" not in tensors:
        raise FamilyError(file, "missing", "weight")
    if "defer_bias" in tensors and "defer" not in tensors:
        raise FamilyError(file, "there is no defer that it would be added to", "defer_bias")
    rows = f"one row for each of the {experts} entries of [[experts]], over the model's {hidden}"
    weight = _checked(tensors, file, "weight", (experts, hidden), rows)
    assert weight is not None
    bias = _checked(tensors, file, "bias", (experts,), f"one number for each of the {experts} entries of [[experts]]")
    defer = _checked(tensors, file, "defer", (hidden,), f"one logit over the model's {hidden}")
    defer_bias = _checked(tensors, file, "defer_bias", (1,), "one number")
    return RouterHead(
        weight=weight,
        bias=torch.zeros(experts) if bias is None else bias,
        defer=defer,
        defer_bias=0.0 if defer_bias is None else float(defer_bias),
    )


def copy_router_head(source: Path, target: Path) -> None:
    """Copy the head beside the checkpoint ``source``, if it has one, to the folder ``target``."""
    if (source / ROUTER_HEAD).is_file():
        shutil.copyfile(source / ROUTER_HEAD, target / ROUTER_HEAD)


def _checked(
    tensors: dict[str, torch.Tensor], file: Path, name: str, shape: tuple[int, ...], needed: str
) -> torch.Tensor | None:
    """The tensor as float32, in memory of its own; None if the file lacks it."""
    tensor = tensors.get(name)
    if tensor is None:
        return None
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        reason = f"{tensor.dtype} of shape {list(tensor.shape)}, but {list(shape)} is needed: {needed}"
        raise FamilyError(file, reason, name)
    require_finite(tensor, file, name)
    # Finite in float64 need not be finite in float32.
    converted = tensor.float().clone()
    require_finite(converted, file, name)
    return converted
