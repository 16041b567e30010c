"""The tensors of an adapter's file: its factors, and copies of the base's layers that say nothing new."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ladle.merging.checkpoints.checkpoint_reader import require_finite
from ladle.merging.checkpoints.tensor_file import read_tensors
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.head_names import HEAD_NAMES

PREFIX = "base_model.model."
_WRAPPERS = (".base_layer", ".modules_to_save.default", ".modules_to_save", ".original_module")


def serve_whole(folder: Path) -> str:
    """What to do about an adapter that cannot be mixed in a forward pass."""
    options = f"BASE --adapter {folder} --out DIR"
    return f"`ladle merge {options}` makes a full checkpoint of it, `ladle compress {options} --rank N` a plain LoRA"


def as_safetensors(file: Path) -> str:
    """What to do where an adapter lies beside ``file`` as a pickle; empty where none does."""
    pickle = file.with_name("adapter_model.bin")
    if not pickle.is_file():
        return ""
    load = f"torch.load('{pickle}', weights_only=True)"
    command = f"import torch, safetensors.torch as s; s.save_file({load}, '{file}')"
    return f'; {pickle.name} is a pickle, which is never loaded: convert it with `python -c "{command}"`'


Weights = Callable[[str], torch.Tensor | None]
"""The base's weight of a name, of a tied one the weight that is stored; None where the base has none."""


@dataclass(frozen=True)
class AdapterTensors:
    """What an adapter's file holds.

    Attributes:
        factors: {module path: {part: matrix}}, each matrix in memory of its own.
        notes: what is there besides and is not used, in sentences.
    """

    factors: dict[str, dict[str, torch.Tensor]]
    notes: tuple[str, ...] = ()


def read_factors(file: Path, suffixes: Mapping[str, str], kind: str, base: Weights | None = None) -> AdapterTensors:
    """Read an adapter's safetensors; every tensor is checked for what it is and for NaN.

    PEFT saves copies of the base's layers beside the factors: of ``lm_head`` where that is adapted, of the embeddings
    where their number has changed, of everything in ``modules_to_save``. A copy that equals the base is no matter.

    Args:
        suffixes: part by the end of a tensor's name.
        kind: what a tensor must be, in words.
        base: the base's weights, to compare copies with; None passes over those that PEFT names ``base_layer`` and
            refuses others.

    Raises:
        FamilyError: naming file and tensor: a copy that differs from the base, a tensor that is neither factor, copy
            nor head, NaN or infinity.
    """
    tensors = read_tensors(file, as_safetensors(file))
    factors: dict[str, dict[str, torch.Tensor]] = {}
    notes = []
    for name in sorted(tensors):
        suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
        tensor = tensors[name]
        if suffix is None or not name.startswith(PREFIX):
            inner = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and _plain(inner) in HEAD_NAMES and base is not None:
                continue  # see ``load_value_head``
            notes += _checked_copy(file, name, tensor, base, kind)
            continue
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise FamilyError(file, f"{tensor.dtype} of shape {list(tensor.shape)}; a floating matrix is needed", name)
        require_finite(tensor, file, name)
        # A copy: adapters are small, and the file may be replaced while the server runs.
        factors.setdefault(name[len(PREFIX) : -len(suffix)], {})[suffixes[suffix]] = tensor.clone()
    if not factors:
        raise FamilyError(file, f"holds not one {kind}")
    return AdapterTensors(factors, tuple(notes))


def read_head(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a scalar head in an adapter's file, by the names of ``HEAD_NAMES``; empty where it has none.

    Raises:
        FamilyError: the file cannot be read.
    """
    plain = {_plain(name.removeprefix(PREFIX)): tensor for name, tensor in read_tensors(file).items()}
    return {name: tensor for name, tensor in plain.items() if name in HEAD_NAMES}


def _plain(name: str) -> str:
    """A tensor's name without what PEFT wraps a module in."""
    # PEFT's wrappers may be nested, in the order of ``_WRAPPERS``.
    path, _, part = name.rpartition(".")
    for wrapper in _WRAPPERS:
        path = path.removesuffix(wrapper)
    return f"{path}.{part}"


def _checked_copy(file: Path, name: str, tensor: torch.Tensor, base: Weights | None, kind: str) -> list[str]:
    """Notes about a copy of one of the base's weights. Raises FamilyError for one that differs, or for no copy."""
    if base is None and name.startswith(PREFIX) and name.rpartition(".")[0].endswith(".base_layer"):
        return []
    weight = _plain(name.removeprefix(PREFIX))
    ours = base(weight) if base is not None and name.startswith(PREFIX) else None
    if ours is None:
        raise FamilyError(file, _why_not(file, name, kind), name)
    rows = tensor.ndim == 2 and len(tensor) > 0 and tensor.shape[1:] == ours.shape[1:]
    if tuple(tensor.shape) != tuple(ours.shape) and not rows:
        reason = (
            f"shape {list(tensor.shape)}, but the base's {weight} has {list(ours.shape)}; {serve_whole(file.parent)}"
        )
        raise FamilyError(file, reason, name)
    # An adapter may be saved in another type than its base; the base rounded to that type is the copy then.
    shared = min(len(tensor), len(ours)) if tensor.ndim else 1
    one, other = (tensor[:shared], ours[:shared]) if tensor.ndim else (tensor, ours)
    differ = int((one != other.to(one.dtype)).sum())
    if differ:
        reason = (
            f"{differ} of {one.numel()} values differ from the base's {weight}: a layer that was trained as a whole"
        )
        raise FamilyError(file, f"{reason}; {serve_whole(file.parent)}", name)
    if tensor.ndim and len(tensor) != len(ours):
        return [
            f"{file}: {name} has {len(tensor)} rows and the base {len(ours)}; the {shared} that both have are equal"
        ]
    return []


def _why_not(file: Path, name: str, kind: str) -> str:
    for part, what in (
        ("lora_magnitude_vector", "a DoRA magnitude"),
        ("lora_embedding_", "a LoRA of an embedding"),
        ("token_adapter", "trained tokens (trainable_token_indices)"),
        (".bias", "a bias"),
    ):
        if part in name:
            return f"{what} is not supported; only factors of linear layers are; {serve_whole(file.parent)}"
    if not name.startswith(PREFIX):
        return f"not a {kind}: its name does not begin with {PREFIX}, as PEFT's do"
    if name.endswith((".lora_A.default.weight", ".lora_B.default.weight")):
        return f"not a {kind}: it is named as in a state_dict; save the adapter with PEFT's save_pretrained"
    if name.endswith(".weight"):
        return f"not a {kind}, and the base has no such weight that it could be a copy of (modules_to_save)"
    return f"not a {kind}"
