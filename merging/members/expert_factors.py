"""LoRA factors of the experts of a mixture, in the two ways in which adapters hold them.

PEFT's ``target_parameters`` gives a weight of all experts one pair: ``lora_A`` ``[experts * r, in]``, expert by expert,
and ``lora_B`` ``[out, r * experts]``, whose columns have the expert as their fastest index. Where a module has two such
weights the pairs are nested, the one that is defined last outside: ``experts.lora_A`` and
``experts.base_layer.lora_A``. Adapters that were trained on experts that were linear modules of their own have a pair
an expert and module (``experts.3.gate_proj``); joined weights get the factors side by side, which is exact.
"""

from collections import defaultdict
from functools import reduce
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from ladle.merging.checkpoints.experts import Experts, ExpertWeight
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter_tensors import PREFIX
from ladle.merging.members.lora_config import LoraSettings
from ladle.merging.members.low_rank import LowRank

_NESTED = ".base_layer"


class ExpertFactors:
    """Collects the pairs of one adapter that belong to experts.

    Attributes:
        routers: (experts, in) of the modules that score experts, by module path; their factors are as any layer's.
    """

    def __init__(self, experts: Experts, settings: LoraSettings, file: Path) -> None:
        self.routers = experts.routers
        self._experts = experts
        self._settings = settings
        self._file = file
        self._wrapped: dict[str, dict[int, tuple[Tensor, Tensor]]] = defaultdict(dict)
        self._single: dict[str, dict[tuple[int, int], tuple[str, LowRank]]] = defaultdict(dict)
        self._parts: dict[str, int] = {}

    def take(self, module: str, a: Tensor, b: Tensor) -> bool:
        """Keep the pair of the module that the adapter calls ``module`` if it belongs to experts. Raises FamilyError
        for one that does and has another shape than its expert."""
        # PEFT nests what it wraps: the number of ``.base_layer`` at the end says which pair of a module this is.
        container = module
        while container.endswith(_NESTED):
            container = container.removesuffix(_NESTED)
        if self._experts.within(container):
            self._wrapped[container][(len(module) - len(container)) // len(_NESTED)] = (a, b)
            return True
        part = self._experts.part(module)
        if part is None:
            return False
        weight = self._experts.weights[part.weight]
        rank = self._settings.rank(module)
        self._require(module, a, b, (rank, weight.inputs), (weight.outputs // part.parts, rank), rank)
        self._parts[part.weight] = part.parts
        self._single[part.weight][part.expert, part.part] = module, LowRank(a, b, self._settings.scale(module))
        return True

    def joined(self) -> dict[str, LowRank]:
        """The factors by the name of the weight. Raises FamilyError, naming file and tensor, where pairs do not fit the
        parameters that ``target_parameters`` names."""
        factors: dict[str, LowRank] = {}
        for container, pairs in self._wrapped.items():
            factors |= self._unwrapped(container, pairs)
        for name, parts in self._single.items():
            if name in factors:
                module = next(iter(parts.values()))[0]
                raise FamilyError(self._file, f"factors of {name} are there twice", f"{PREFIX}{module}.lora_A.weight")
            factors[name] = _side_by_side(self._experts.weights[name], self._parts[name], parts)
        return factors

    def _unwrapped(self, container: str, pairs: dict[int, tuple[Tensor, Tensor]]) -> dict[str, LowRank]:
        """The factors of nested pairs, by depth; the one at depth 0 is outside."""
        names = [name for name in self._experts.within(container) if self._settings.targets(self._key(container, name))]
        depths = sorted(pairs, reverse=True)
        tensor = f"{PREFIX}{container}{_NESTED * depths[-1]}.lora_A.weight"
        if len(names) != len(pairs) or depths != list(range(len(pairs)))[::-1]:
            named = ", ".join(names) or "none of its parameters"
            reason = f"{len(pairs)} pairs of factors of this module, but target_parameters names {named}"
            raise FamilyError(self._file, reason, tensor)
        # The order in which they are defined is PEFT's; versions before 0.18 had others, which the shapes tell.
        for order in permutations(names):
            by_name = {
                name: factors
                for name, depth in zip(order, depths, strict=True)
                if (factors := self._of_all(container, name, *pairs[depth])) is not None
            }
            if len(by_name) == len(names):
                return by_name
        weight = self._experts.weights[names[0]]
        rank = self._settings.rank(self._key(container, names[0]))
        wanted = [weight.experts * rank, weight.inputs], [weight.outputs, weight.experts * rank]
        shapes = " and ".join(str(list(side.shape)) for side in pairs[depths[0]])
        reason = (
            f"shapes {shapes}, but {wanted[0]} and {wanted[1]} follow from rank {rank} and {weight.experts} experts"
        )
        raise FamilyError(self._file, reason, f"{PREFIX}{container}{_NESTED * depths[0]}.lora_A.weight")

    def _key(self, container: str, name: str) -> str:
        return f"{container}.{name.rpartition('.')[2]}"

    def _of_all(self, container: str, name: str, a: Tensor, b: Tensor) -> LowRank | None:
        """The factors of one weight of all experts, from a pair of ``target_parameters``; None where it has other
        shapes than the weight means."""
        weight = self._experts.weights[name]
        rank = self._settings.rank(key := self._key(container, name))
        rows = weight.experts * rank
        if tuple(a.shape) != (rows, weight.inputs) or tuple(b.shape) != (weight.outputs, rows):
            return None
        # PEFT keeps B as [out, rank * experts] with the expert as the fastest index, and A expert by expert.
        down = b.reshape(weight.outputs, rank, weight.experts).permute(2, 0, 1).contiguous()
        up = a.reshape(weight.experts, rank, weight.inputs)
        return LowRank(up, down, self._settings.scale(key), weight.transposed)

    def _require(
        self, module: str, a: Tensor, b: Tensor, wanted_a: tuple[int, int], wanted_b: tuple[int, int], rank: int
    ) -> None:
        for label, tensor, wanted in (("lora_A", a, wanted_a), ("lora_B", b, wanted_b)):
            if tuple(tensor.shape) != wanted:
                reason = (
                    f"shape {list(tensor.shape)}, but {list(wanted)} follows from rank {rank} and the base's expert"
                )
                raise FamilyError(self._file, reason, f"{PREFIX}{module}.{label}.weight")


def _side_by_side(weight: ExpertWeight, count: int, parts: dict[tuple[int, int], tuple[str, LowRank]]) -> LowRank:
    """One pair for all experts from pairs by (expert, part). Each part has rank columns of its own, so that
    ``[B_gate A_gate; B_up A_up]`` comes out as it was; an expert without a pair has zeros."""
    ranks = [max((own.rank for (_, part), (_, own) in parts.items() if part == which), default=0)
             for which in range(count)]  # fmt: skip
    starts = [sum(ranks[:which]) for which in range(count)]
    scales = {own.scale for _, own in parts.values()}
    scale = scales.pop() if len(scales) == 1 else None
    dtypes = [factor.dtype for _, own in parts.values() for factor in (own.a, own.b)]
    # Scales that differ are folded into the factors, without a loss.
    dtype = torch.float64 if scale is None else reduce(torch.promote_types, dtypes)
    a = torch.zeros(weight.experts, sum(ranks), weight.inputs, dtype=dtype)
    b = torch.zeros(weight.experts, weight.outputs, sum(ranks), dtype=dtype)
    rows = weight.outputs // count
    for (expert, part), (_, own) in parts.items():
        columns = slice(starts[part], starts[part] + own.rank)
        a[expert, columns] = own.a.to(dtype)
        b[expert, part * rows : (part + 1) * rows, columns] = own.b.to(dtype) * (
            1.0 if scale is not None else own.scale
        )
    return LowRank(a, b, 1.0 if scale is None else scale, weight.transposed)


def flat_factors(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """``b`` [experts, out, rank] and ``a`` [experts, rank, in] as PEFT has them for a parameter: ``lora_B`` and
    ``lora_A``."""
    return b.permute(1, 2, 0).flatten(1), a.flatten(0, 1)


def nested_module(name: str, targeted: list[str], experts: Experts) -> str:
    """The module under which PEFT saves the factors of the weight ``name`` where ``targeted`` are adapted."""
    container = name.rpartition(".")[0]
    beside = [other for other in experts.within(container) if other in targeted]
    return container + _NESTED * (len(beside) - 1 - beside.index(name))
