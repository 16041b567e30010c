"""Low-rank deltas: the factors of one weight, and a member that is made of such."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch


@dataclass(frozen=True)
class LowRank:
    """One weight's delta: W + scale * b @ a, of a linear layer or of all experts of a layer.

    Attributes:
        a: ``[rank, in]``, the dtype it was saved in; of experts ``[experts, rank, in]``.
        b: ``[out, rank]``, likewise; of experts ``[experts, out, rank]``.
        scale: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).
        transposed: the weight is kept as ``[in, out]``, which some models do with those of experts.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    def of(self, expert: int) -> "LowRank":
        """The factors of one expert."""
        return replace(self, a=self.a[expert], b=self.b[expert])

    def laid_out(self) -> "LowRank":
        """This delta with factors whose product has the layout of the weight."""
        return LowRank(self.b.mT, self.a.mT, self.scale) if self.transposed else self

    def delta(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense delta in the layout of the weight, computed in ``dtype``."""
        factors = self.laid_out()
        return (factors.b.to(dtype) @ factors.a.to(dtype)).mul_(self.scale)


@dataclass(frozen=True)
class LowRankMember:
    """A member kept as low-rank deltas.

    Attributes:
        name: its name in the family.
        path: the PEFT folder.
        modules: delta by module path in the base, e.g. ``model.layers.0.self_attn.q_proj``; of experts by the name of
            the weight, ``model.layers.0.mlp.experts.down_proj``.
        notes: what is there and is not used, in sentences.
    """

    name: str
    path: Path
    modules: dict[str, LowRank]
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 for a member that is the model as it is."""
        return max((module.rank for module in self.modules.values()), default=0)

    def numel(self) -> int:
        """Number of parameters."""
        return sum(module.a.numel() + module.b.numel() for module in self.modules.values())

    def nbytes(self) -> int:
        """Bytes as saved."""
        return sum(module.a.nbytes + module.b.nbytes for module in self.modules.values())
