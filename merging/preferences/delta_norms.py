"""Frobenius norms of merged low-rank deltas, from the factors alone."""

import math
from collections.abc import Mapping

import torch

from ladle.merging.members.adapter import LowRankMember


class DeltaNorms:
    """||sum_j c_j D_j|| over all modules, for any coefficients: a sum over pairs of members of c_i c_j <D_i, D_j>.

    <s_i B_i A_i, s_j B_j A_j> = s_i s_j sum((B_i^T B_j) * (A_i A_j^T)) needs no dense delta. Every pair is computed
    once, in float64, when it is first asked for.
    """

    def __init__(self, members: Mapping[str, LowRankMember]) -> None:
        self._members = members
        self._products: dict[tuple[str, str], float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def product(self, one: str, other: str) -> float:
        """<D_one, D_other>; modules that only one of them changes add nothing. Raises KeyError."""
        key = (min(one, other), max(one, other))
        if key not in self._products:
            first, second = (self._members[name].modules for name in key)
            parts = []
            for module in first.keys() & second.keys():
                p, q = first[module], second[module]
                # The trace identity <BA, B'A'> = sum((B^T B') * (A A'^T)): two small [r, r'] matrices in place of two
                # dense deltas.
                outer = p.b.to(torch.float64).mT @ q.b.to(torch.float64)
                inner = p.a.to(torch.float64) @ q.a.to(torch.float64).mT
                parts.append(p.scale * q.scale * float((outer * inner).sum()))
            self._products[key] = math.fsum(parts)
        return self._products[key]

    def merged(self, coefficients: Mapping[str, float]) -> float:
        """Norm of the merged delta. Raises KeyError for a member without low-rank factors."""
        # A quadratic form in the coefficients; rounding may leave it just below 0 where deltas cancel.
        squares = [
            c * d * self.product(one, other) for one, c in coefficients.items() for other, d in coefficients.items()
        ]
        return math.sqrt(max(0.0, math.fsum(squares)))

    def mean(self, coefficients: Mapping[str, float]) -> float:
        """Mean norm of the members' own deltas, each weighted by the size of its coefficient; 0 where all are 0."""
        total = math.fsum(map(abs, coefficients.values()))
        lengths = [abs(c) * math.sqrt(max(0.0, self.product(name, name))) for name, c in coefficients.items()]
        return math.fsum(lengths) / total if total else 0.0
