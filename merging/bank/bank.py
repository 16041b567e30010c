"""The bank: the low-rank factors of all members of a family, stacked module by module.

Merging is linear in the deltas: W(c) = W0 + sum_j c_j s_j B_j A_j. Stacking the factors gives the same merge at run
time, ``y = W0 x + B_cat (c * (A_cat x))`` with one coefficient per rank column, so every row of a batch may carry its
own coefficients (our reconstruction; algebra F5 of rank concatenation, exact in delta space).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ladle.kernels.dispatch import Block
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.low_rank import LowRankMember


@dataclass(frozen=True)
class StackedFactors:
    """All members' factors for one or more linear modules that read the same input.

    Attributes:
        shrink: [R, in], the A's.
        expand: [out, R], the scaled B's, block structured when several modules are stacked.
        columns: [R] int64, the member (its index in ``Bank.members``) that each rank column belongs to.
        blocks: where ``expand`` may be other than zero, a block per module.
    """

    shrink: Tensor
    expand: Tensor
    columns: Tensor
    blocks: tuple[Block, ...] = ()

    def padded(self, outputs: int) -> StackedFactors:
        """These factors, with one more rank column of zeros if ``outputs`` and the ranks come to an odd number: models
        that turn pairs as complex numbers need rows of even length."""
        if (outputs + self.shrink.shape[0]) % 2 == 0:
            return self
        shrink, expand = F.pad(self.shrink, (0, 0, 0, 1)), F.pad(self.expand, (0, 1))
        return StackedFactors(shrink, expand, F.pad(self.columns, (0, 1)), self.blocks)


class Bank:
    """Stacked factors of ``members``; a coefficient row has one entry for each of ``names``.

    ``names``: the columns, where several banks share one table of coefficients; by default the members in order.
    """

    def __init__(self, members: Sequence[LowRankMember], names: Sequence[str] | None = None) -> None:
        self.members = tuple(names) if names is not None else tuple(member.name for member in members)
        self._factors = {member.name: member.modules for member in members}
        self._paths = {member.name: member.path for member in members}
        self.modules = frozenset(path for member in members for path in member.modules)

    @property
    def index(self) -> dict[str, int]:
        """Member name -> its entry in a coefficient row."""
        return {name: position for position, name in enumerate(self.members)}

    def folder_of(self, module: str) -> str:
        """Where the first member lies that changes the module ``module``. Raises StopIteration where none does."""
        return str(next(self._paths[name] for name, modules in self._factors.items() if module in modules))

    def stack(
        self, paths: Sequence[str], out_features: Sequence[int], dtype: torch.dtype, expert: int | None = None
    ) -> StackedFactors | None:
        """The factors of the modules ``paths`` (with ``out_features`` rows each) as one pair of matrices.

        Scales are folded into ``expand`` in float64 before rounding to ``dtype``. None when no member touches them.
        ``expert``: whose factors, where ``paths`` are weights of all experts of a layer.
        """
        # A_cat is [R, in] and B_cat [out, R], R the ranks of all members and modules: (B_cat (c * A_cat x)) is the sum
        # over members of c_j s_j B_j A_j x.
        shrink: list[Tensor] = []
        expand: list[Tensor] = []
        columns: list[int] = []
        blocks: list[Block] = []
        total = sum(out_features)
        start = 0
        for path, rows in zip(paths, out_features, strict=True):
            # Every module has its rows of B; a member adds rank columns to each module that it touches.
            first = len(columns)
            for position, name in enumerate(self.members):
                factors = self._factors[name].get(path) if name in self._factors else None
                if factors is None:
                    continue
                factors = factors if expert is None else factors.of(expert)
                rank = factors.rank
                # Block structure: a module's B is zero on the outputs of its neighbours, which share the input.
                scaled = torch.zeros(total, rank, dtype=torch.float64)
                scaled[start : start + rows] = factors.b.double() * factors.scale
                shrink.append(factors.a.double())
                expand.append(scaled)
                # Which coefficient a rank column takes: every column of a member has that member's.
                columns.extend([position] * rank)
            blocks.append((start, start + rows, first, len(columns)))
            start += rows
        if not shrink:
            return None
        return StackedFactors(
            torch.cat(shrink).to(dtype),
            torch.cat(expand, dim=1).to(dtype),
            torch.tensor(columns, dtype=torch.int64),
            tuple(blocks),
        )

    def require_finite(self, factors: StackedFactors, dtype: torch.dtype, paths: Sequence[str]) -> None:
        """Refuse factors that ``dtype`` cannot hold.

        0 * infinity is no number: such a member would spoil the rows that do not even use it.

        Raises:
            FamilyError: naming the member's folder and the modules.
        """
        # Both with ranks as rows: the first row that is not finite says whose it is.
        for side, tensor in (("B times its scale", factors.expand.T), ("A", factors.shrink)):
            bad = ~torch.isfinite(tensor.to(dtype)).all(dim=1)
            if bad.any():
                name = self.members[int(factors.columns[int(bad.nonzero()[0])])]
                reason = f"{side} of member {name!r} has values beyond the range of {dtype}"
                raise FamilyError(self._paths[name], reason, ", ".join(paths))
