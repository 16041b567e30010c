"""Streaming merges: W = W0 + sum_j c_j (W_j - W0), into memory that is already there.

Fresh memory costs a page fault every 4 KiB, several times what the arithmetic costs; so output and scratch are
preallocated and the work goes through them in chunks that stay in cache. Sums are float32, or float64 where the output
or the base is float64, whatever the dtypes of the tensors.

Full members are summed as (1 - sum_j c_j) W0 + sum_j c_j W_j: the same merge with one pass a member instead of the two
that differences need, which is what keeps it at the speed of memory. Where the coefficients sum to 1 the base is not
even read. Low-rank members are deltas already and are added as such.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ladle.kernels import dispatch
from ladle.merging.checkpoints.architecture import Architecture
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.family.family import Family
from ladle.merging.family.family_model import FamilyModel
from ladle.merging.members.adapter import LowRank, LowRankMember
from ladle.merging.members.full_member import FullMember

CHUNK = 1 << 18  # elements: 1 MiB of float32, so that the running sum stays in the cache of the cores
_GRID = float(1 << 40)
_NOISE = 1e-12  # coefficients lie on the grid, so a share of the base this small is an artefact of the sum


@dataclass(frozen=True)
class TensorSpec:
    """A merged tensor before there is one.

    Attributes:
        shape: its sizes.
        dtype: in which it is written.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def empty(self) -> torch.Tensor:
        """An uninitialised tensor on the CPU."""
        return torch.empty(self.shape, dtype=self.dtype)


class Merge:
    """All merges of one base and its members, low-rank and full alike.

    Not thread-safe: it owns the scratch memory. Make one an executing thread.
    """

    def __init__(
        self,
        base: CheckpointReader | ConvertedReader,
        architecture: Architecture,
        low_rank: Mapping[str, LowRankMember],
        full: Mapping[str, FullMember],
    ) -> None:
        self._base = base
        self._architecture = architecture
        self._low_rank = low_rank
        self._full = full
        self._scratch = Scratch()

    @classmethod
    def of(cls, model: Family | FamilyModel) -> "Merge":
        """The merges of a family's base, or of one of its models."""
        return cls(model.base, model.architecture, model.low_rank, model.full)

    def layout(self, coefficients: Mapping[str, float], dtype: torch.dtype | None = None) -> dict[str, TensorSpec]:
        """What a merge gives: a spec by tensor name, sorted.

        The names are the base's. A tied output head is left out, as in the base, unless a member's LoRA moves it alone:
        then it is a tensor of its own (``unties``).

        Args:
            coefficients: by member; raises KeyError for an unknown one.
            dtype: of floating tensors; None keeps the base's.
        """
        for member in coefficients:
            if member not in self._full and member not in self._low_rank:
                raise KeyError(member)
        # Tied weights are written once, under the stored name, unless this merge takes them apart.
        names = [name for name in self._base.names if name not in self._architecture.tied]
        specs = {}
        for name in sorted(names + self.unties(coefficients)):
            stored = self._architecture.stored_as(name) if name not in self._base else name
            own = self._base.dtype(stored)
            specs[name] = TensorSpec(self._base.shape(stored), dtype if dtype and own.is_floating_point else own)
        return specs

    def unties(self, coefficients: Mapping[str, float]) -> list[str]:
        """Names of tied weights that this merge has to store on their own."""
        # A LoRA on a tied head changes the head and not the embeddings, which are the same tensor in the base: merged,
        # they are two.
        active = [self._low_rank[name] for name in _active(coefficients) if name in self._low_rank]
        return [
            name
            for name in sorted(self._architecture.tied)
            if any(name.removesuffix(".weight") in member.modules for member in active)
        ]

    def into(self, out: Mapping[str, torch.Tensor], coefficients: Mapping[str, float]) -> None:
        """Merge every tensor of ``out`` (as ``layout`` says) in place."""
        for name, tensor in out.items():
            self.tensor_into(tensor, name, coefficients)

    def tensors(
        self, coefficients: Mapping[str, float], dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, merged tensor) one after the other, each in memory of its own."""
        for name, spec in self.layout(coefficients, dtype).items():
            tensor = spec.empty()
            self.tensor_into(tensor, name, coefficients)
            yield name, tensor

    def tensor_into(self, out: torch.Tensor, name: str, coefficients: Mapping[str, float]) -> None:
        """Merge the tensor ``name`` into ``out`` (contiguous, the base's shape, any floating dtype)."""
        stored = self._architecture.stored_as(name)
        module = name.removesuffix(".weight")
        # Members that do not change this tensor drop out: of low-rank ones those without factors for it.
        full = []
        low_rank = []
        for member, coefficient in _active(coefficients).items():
            if member in self._full:
                reader = self._full[member].reader
                # A value's checkpoint may lack the output head, which is then the base's.
                full.append((coefficient, reader.tensor(stored) if stored in reader else self._base.tensor(stored)))
            elif module in (modules := self._low_rank[member].modules):
                low_rank.append((coefficient, modules[module].laid_out()))
        merge_tensor(out, self._base.tensor(stored), full, low_rank, self._scratch)


def merge_tensor(
    out: torch.Tensor,
    base: torch.Tensor,
    full: Sequence[tuple[float, torch.Tensor]],
    low_rank: Sequence[tuple[float, LowRank]] = (),
    scratch: "Scratch | None" = None,
) -> None:
    """out = base + sum_j c_j (full_j - base) + sum_j c_j scale_j b_j a_j.

    One full member at coefficient 1 and nothing else is copied, so it comes out bit for bit; so does the base where
    nothing takes part.

    Args:
        out: contiguous; the shape of ``base``, any floating dtype (other dtypes: copied from the base).
        base: W0.
        full: (c_j, W_j), the shape of ``base``.
        low_rank: (c_j, delta_j) for a matrix ``base`` ``[out, in]``, or for one an expert ``[experts, out, in]``.
        scratch: memory to work in; made for the call if None.
    """
    if not base.is_floating_point() or (not full and not low_rank):
        out.copy_(base)
        return
    if len(full) == 1 and full[0][0] == 1.0 and not low_rank:
        out.copy_(full[0][1])
        return
    scratch = scratch if scratch is not None else Scratch()
    if low_rank and base.ndim == 3:
        for expert in range(len(out)):
            weights = [(c, tensor[expert]) for c, tensor in full]
            merge_tensor(out[expert], base[expert], weights, [(c, d.of(expert)) for c, d in low_rank], scratch)
        return
    sum_dtype = torch.float64 if torch.float64 in (out.dtype, base.dtype) else torch.float32
    factors = _stack(low_rank, sum_dtype)
    # Low-rank products need whole rows; everything else is cut without regard to shape.
    columns = base.shape[-1] if factors is not None else 1
    # 1 - sum_j c_j, the base's part once W0 + sum_j c_j (W_j - W0) is written as a weighted sum of whole weights.
    share = math.fsum([1.0, *(-coefficient for coefficient, _ in full)])
    terms = [(share, base)] if abs(share) > _NOISE else []
    terms = [(coefficient, tensor.reshape(-1, columns)) for coefficient, tensor in [*terms, *full]]
    if dispatch.on_gpu(out):
        delta = [] if factors is None else [(1.0, (factors[0].to(out.device) @ factors[1].to(out.device)))]
        dispatch.merge_weights(out.view(-1, columns), [*((c, tensor.to(out.device)) for c, tensor in terms), *delta])
        return
    if _one_pass(out, terms):
        dispatch.weighted_sum(out.view(-1).numpy(), [(c, tensor.reshape(-1).numpy()) for c, tensor in terms])
        if factors is not None:
            out.view(-1, columns).addmm_(factors[0], factors[1])
        return
    # Chunk by chunk: terms are converted into scratch one at a time and added up in the wider dtype, directly in
    # ``out`` where it has that dtype, and rounded once.
    target = out.view(-1, columns)
    step = max(1, CHUNK // columns)
    for start in range(0, target.shape[0], step):
        rows = slice(start, start + step)
        chunk = target[rows]
        total = chunk if out.dtype == sum_dtype else scratch.like(0, chunk, sum_dtype)
        for index, (coefficient, tensor) in enumerate(terms):
            values = scratch.converted(1, tensor[rows], sum_dtype)
            if index == 0:
                torch.mul(values, coefficient, out=total)
            else:
                total.add_(values, alpha=coefficient)
        if factors is not None:
            total.addmm_(factors[0][rows], factors[1])
        if total is not chunk:
            chunk.copy_(total)


def _one_pass(out: torch.Tensor, terms: Sequence[tuple[float, torch.Tensor]]) -> bool:
    """Whether the sum can be made in one compiled pass: float32 on a CPU throughout."""
    return all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        for tensor in (out, *(tensor for _, tensor in terms))
    ) and (out.numel() >= CHUNK and dispatch.can_compile())


class Scratch:
    """A few buffers that grow to the largest chunk asked for and stay."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def like(self, slot: int, shape_of: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised memory of the shape of ``shape_of``; the same slot and dtype give the same memory again."""
        # Slot 0 is for the running sum and slot 1 for a converted term, which are needed at the same time.
        buffer = self._buffers.get((slot, dtype))
        if buffer is None or buffer.numel() < shape_of.numel():
            buffer = self._buffers[slot, dtype] = torch.empty(max(CHUNK, shape_of.numel()), dtype=dtype)
        return buffer[: shape_of.numel()].view(shape_of.shape)

    def converted(self, slot: int, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``tensor`` itself if it has the dtype, else its values in scratch memory."""
        return tensor if tensor.dtype == dtype else self.like(slot, tensor, dtype).copy_(tensor)


def _stack(low_rank: Sequence[tuple[float, LowRank]], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
    """[c_1 s_1 B_1 | c_2 s_2 B_2 | ...] and [A_1; A_2; ...]: one product for all of them, exact in delta space."""
    if not low_rank:
        return None
    b = torch.cat([delta.b.to(torch.float64) * (c * delta.scale) for c, delta in low_rank], dim=1)
    a = torch.cat([delta.a for _, delta in low_rank], dim=0)
    return b.to(dtype), a.to(dtype)


def _active(coefficients: Mapping[str, float]) -> dict[str, float]:
    """Coefficients on a grid of 2**-40, zeros dropped.

    Solving for a one-hot mix leaves float64 noise (1e-17 here, 1 - 1e-16 there). It is far below what any sum of
    float32 terms can show, but it would cost the bit-for-bit identity of a member at weight 1.
    """
    # Powers of two scale exactly, so that a coefficient that is 1, or any short binary fraction, stays what it is.
    snapped = {name: round(value * _GRID) / _GRID for name, value in coefficients.items()}
    return {name: value for name, value in snapped.items() if value != 0.0}
