"""From a full checkpoint to a PEFT LoRA folder: the best low-rank approximation of every linear layer's delta."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ladle.merging.checkpoints.architecture import Architecture
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.checkpoints.new_folder import new_folder, require_free
from ladle.merging.exceptions import InputError
from ladle.merging.members.adapter import CONFIG, WEIGHTS
from ladle.merging.members.expert_factors import flat_factors, nested_module
from ladle.merging.members.full_member import FullMember
from ladle.merging.members.router_head import copy_router_head
from ladle.merging.members.value_head import copy_value_head

REPORT = "compression.json"


@dataclass(frozen=True)
class TensorError:
    """What compression did to one tensor.

    Attributes:
        name: of the tensor.
        rank: kept; 0 where nothing is kept.
        norm: Frobenius norm of the delta from the base.
        relative_error: norm of what is lost over ``norm``.
    """

    name: str
    rank: int
    norm: float
    relative_error: float


@dataclass(frozen=True)
class CompressionReport:
    """Attributes:
    tensors: every linear weight that differs from the base.
    not_representable: tensors that differ but are no linear weight (norms, biases, embeddings); they are lost whole.
    relative_error: over everything: sqrt(sum of squared losses / sum of squared deltas).
    lost_share: share of the squared delta that is not representable.
    parameters: numbers in the factors written.
    """

    tensors: tuple[TensorError, ...]
    not_representable: tuple[TensorError, ...]
    relative_error: float
    lost_share: float
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return asdict(self)


def compress(
    member: FullMember,
    base: CheckpointReader | ConvertedReader,
    architecture: Architecture,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base_name: str = "",
    max_error: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CompressionReport:
    """Write ``member`` as LoRA factors, W_j - W0 ~ B A, by truncated singular value decomposition.

    The complete decomposition is computed: it is the best approximation of its rank there is (Eckart and Young), its
    spectrum is what an energy target needs, and this runs once. The randomised ``svd_lowrank`` would be faster on
    large matrices, but the spectra of fine-tuning deltas fall slowly, where it is least accurate.

    Args:
        member: a full member that was checked against ``base``.
        base: the base's tensors.
        architecture: the base's architecture.
        out: a folder that does not exist or is empty; gets a PEFT folder and ``compression.json``, and the head of
            an explicit value or a router.
        rank: kept in every linear (or less where a delta has less). Give this or ``energy``.
        energy: in (0, 1]: per linear, the smallest rank that keeps this share of the squared norm.
        base_name: recorded as ``base_model_name_or_path``.
        max_error: refuse to write when the total relative error is above it.
        progress: called with (tensors done, tensors in all).

    Raises:
        InputError: bad arguments, ``out`` is taken, nothing differs from the base, or the error is above ``max_error``.
        FamilyError: the disk is full.
    """
    if (rank is None) == (energy is None):
        raise InputError("rank", rank, "a rank or an energy, one of the two")
    if rank is not None and rank < 1:
        raise InputError("rank", rank, "a whole number >= 1")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise InputError("energy", energy, "a number in (0, 1]")
    target = require_free(out)

    # A tied output head is the embedding and would need a delta on both: only heads of their own are linear here.
    linear = {f"{path}.weight": path for path in architecture.linear if f"{path}.weight" not in architecture.tied}
    linear |= {f"{path}.weight": path for path in architecture.experts.routers}
    linear |= {name: name for name in architecture.experts.weights}
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    kept, lost = [], []
    names = [name for name in base.names if name not in architecture.tied and base.dtype(name).is_floating_point]
    for done, name in enumerate(names, start=1):
        if name not in member.reader:
            continue  # the output head of an explicit value's checkpoint, which is the base's
        # Tensor by tensor, so that the peak is one weight and its decomposition.
        ours, theirs = base.tensor(name), member.reader.tensor(name)
        exact = torch.float64 if torch.float64 in (ours.dtype, theirs.dtype) else torch.float32
        delta = theirs.to(exact) - ours.to(exact)
        norm = float(torch.linalg.norm(delta))
        if norm > 0.0 and name in linear:
            experts = architecture.experts.weights.get(name)
            delta = delta.mT if experts is not None and experts.transposed else delta
            b, a = _of_all(delta, rank, energy) if experts is not None else truncated_svd(delta, rank, energy)
            loss = float(torch.linalg.norm(delta - b @ a))
            kept.append(TensorError(name, a.shape[-2], norm, loss / norm))
            factors[linear[name]] = (b.to(torch.float32), a.to(torch.float32))
        elif norm > 0.0:
            lost.append(TensorError(name, 0, norm, 1.0))
        if progress:
            progress(done, len(names))
    if not factors:
        raise InputError("member", member.name, "a member with a linear weight that differs from the base's")
    report = _report(kept, lost, factors)
    if max_error is not None and report.relative_error > max_error:
        raise InputError("max_error", max_error, f"at least {report.relative_error:.4g}, the error at this rank")
    with new_folder(target) as folder:
        _write(folder, factors, report, base_name, architecture)
        copy_value_head(member.path, folder)
        copy_router_head(member.path, folder)
    return report


def truncated_svd(delta: torch.Tensor, rank: int | None, energy: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(b ``[out, r]``, a ``[r, in]``) with b @ a the best rank-r approximation of ``delta``, in its dtype.

    The singular values are split evenly, so both factors are of one size. r is at least 1.
    """
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    if energy is not None:
        # By Eckart and Young the squared norm that rank r keeps is the sum of its r largest squared singular values.
        share = torch.cumsum(s.double().square(), dim=0) / s.double().square().sum()
        # The tolerance keeps energy=1.0 from chasing singular values that are rounding noise.
        rank = int((share < energy - 1e-12).sum()) + 1
    assert rank is not None
    # Numerical rank: singular values below the rounding of the largest one carry no information.
    significant = int((s > s[0] * max(delta.shape) * torch.finfo(s.dtype).eps).sum())
    r = max(1, min(rank, significant))
    # U sqrt(S) and sqrt(S) V^T: neither factor is much larger than the other, which would cost digits in 16 bits.
    root = s[:r].sqrt()
    return u[:, :r] * root, root[:, None] * vh[:r]


def _of_all(delta: torch.Tensor, rank: int | None, energy: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """``truncated_svd`` of each expert's part of ``delta`` [experts, out, in], with zeros up to the largest rank: PEFT
    has one rank for all experts of a weight."""
    moved = [own if bool(own.any()) else None for own in delta]
    pairs = [None if own is None else truncated_svd(own, rank, energy) for own in moved]
    most = max(pair[1].shape[0] for pair in pairs if pair is not None)
    b, a = delta.new_zeros(len(delta), delta.shape[1], most), delta.new_zeros(len(delta), most, delta.shape[2])
    for expert, pair in enumerate(pairs):
        if pair is not None:
            b[expert, :, : pair[1].shape[0]], a[expert, : pair[1].shape[0]] = pair
    return b, a


def _report(
    kept: list[TensorError], lost: list[TensorError], factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> CompressionReport:
    # Squared norms add up over tensors, as the deltas' entries do.
    total = math.fsum(tensor.norm**2 for tensor in kept + lost)
    missed = math.fsum((tensor.norm * tensor.relative_error) ** 2 for tensor in kept + lost)
    return CompressionReport(
        tensors=tuple(kept),
        not_representable=tuple(lost),
        relative_error=math.sqrt(missed / total),
        lost_share=math.fsum(tensor.norm**2 for tensor in lost) / total,
        parameters=sum(b.numel() + a.numel() for b, a in factors.values()),
    )


def _write(
    folder: Path,
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]],
    report: CompressionReport,
    base_name: str,
    architecture: Architecture,
) -> None:
    experts, routers = architecture.experts.weights, architecture.experts.routers
    # What is no linear layer is a parameter to PEFT, under its own name.
    keys = {path: f"{path}.weight" if path in routers else path for path in factors}
    ranks = {keys[path]: a.shape[-2] for path, (_, a) in factors.items()}
    largest = max(ranks.values())
    own = {key: rank for key, rank in ranks.items() if rank != largest}
    parameters = sorted(keys[path] for path in factors if path in routers or path in experts)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,  # alpha = rank everywhere: a scale of 1
        "rank_pattern": own,
        "alpha_pattern": own,
        "target_modules": sorted(ranks.keys() - set(parameters)),
        **({"target_parameters": parameters} if parameters else {}),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    tensors = {}
    for path, (b, a) in factors.items():
        module = nested_module(path, list(factors), architecture.experts) if path in experts else path
        b, a = flat_factors(b, a) if path in experts else (b, a)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
