"""Gated layers: transformers' own modules with their linear layers swapped for products that merge in the forward pass.

Linear layers that read the same tensor (query/key/value, gate/up) become one product whose extra output columns are the
bank's shrink products, so a merge costs one multiplication by the coefficient row and one small product on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ladle.kernels import dispatch
from ladle.merging.bank.bank import Bank
from ladle.merging.bank.gated_experts import GatedExperts, expert_weights, install_experts
from ladle.merging.bank.gated_group import Gate, GatedGroup
from ladle.merging.bank.gated_weight import install_weights, require_multiplied, weight_of
from ladle.merging.bank.grouped_experts import GroupedExperts
from ladle.merging.bank.tensor_parallel import COLUMNS_GATHERED, Shard
from ladle.merging.exceptions import FamilyError


class _Valueless(Tensor):
    """A weight whose values lie in a packed product. Only its attributes can be asked for: torch's products on a CPU
    read whatever memory is there for a tensor on the meta device."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ not in _ATTRIBUTES:
            raise RuntimeError("the values of this layer's weight are in a packed product: the layer has to be called")
        return super().__torch_function__(function, types, args, kwargs or {})


_ATTRIBUTES = frozenset({"__get__", "size", "dim", "stride", "numel", "element_size", "is_floating_point"})


class _Readers(TorchFunctionMode):
    """Notes which linear layers have their weight read by others than themselves, while ``inside`` has who runs now."""

    def __init__(self, paths: Mapping[nn.Linear, str]) -> None:
        super().__init__()
        self.inside: list[nn.Module] = []
        self.read: set[str] = set()
        self._owners = {id(linear.weight): linear for linear in paths}
        self._paths = paths

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ not in _ATTRIBUTES:
            for value in (*args, *(kwargs or {}).values()):
                owner = self._owners.get(id(value))
                if owner is not None and owner not in self.inside:
                    self.read.add(self._paths[owner])
        return function(*args, **(kwargs or {}))


class GatedLinear(nn.Module):
    """Stands where a linear layer stood; asks its group for its share of the common product."""

    def __init__(self, group: GatedGroup, position: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.group = group
        self.position = position
        self.in_features = in_features
        self.out_features = out_features

    @property
    def weight(self) -> Tensor:
        """The layer's weight [out, in] without its values, for models that ask for its dtype or its shape."""
        # On the meta device: models ask a layer's weight for its dtype and shape, and the values are packed elsewhere.
        empty = torch.empty(self.out_features, self.in_features, dtype=self.group.dtype, device="meta")
        return empty.as_subclass(_Valueless)

    def forward(self, x: Tensor) -> Tensor:
        return self.group.member(self.position, x)


def shared_inputs(model: nn.Module) -> list[list[str]]:
    """Paths of the linear layers of ``model``, grouped by parent and input tensor as one probing forward shows it.

    Found by running, not by name, so it holds for any decoder; a layer that the probe does not reach, or that it
    reaches with several inputs, stands alone. A layer whose weight the model reads past it (a router that multiplies
    with ``gate.weight``) is in no group: it has to stay as it is.
    """
    paths: dict[Any, str] = {module: path for path, module in model.named_modules() if type(module) is nn.Linear}
    seen: list[tuple[str, Tensor, str]] = []
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    readers = _Readers({module: path for module, path in paths.items() if id(module.weight) not in shared})

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        path = paths[module]
        seen.append((path.rpartition(".")[0], inputs[0], path))
        readers.inside.append(module)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        readers.inside.remove(module)

    # One forward of two tokens, in which every linear layer says which tensor it was given.
    hooks = [hook for module in paths for hook in (module.register_forward_pre_hook(before),
                                                   module.register_forward_hook(after))]  # fmt: skip
    device = next(model.parameters()).device
    try:
        with torch.inference_mode(), readers:
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    # Layers under one parent that were given the very same tensor can be one product.
    groups: dict[tuple[str, int], list[str]] = {}
    for parent, tensor, path in seen:
        # `seen` keeps the tensors alive, so an id names one tensor.
        groups.setdefault((parent, id(tensor)), []).append(path)
    distinct = [list(dict.fromkeys(group)) for group in groups.values()]
    times = Counter(path for group in distinct for path in group)
    # What is made for one of several inputs is no use for the others.
    alone = {path for path, inputs in times.items() if inputs > 1} | readers.read
    grouped = [together for group in distinct if (together := [path for path in group if path not in alone])]
    known = {path for group in grouped for path in group} | readers.read
    return grouped + [[path] for path in paths.values() if path not in known]


def install(
    model: nn.Module,
    bank: Bank,
    activation_dtype: torch.dtype,
    exact: bool,
    splits: Mapping[str, Shard] | None = None,
    reproducible: bool = False,
    quantized: bool = False,
    tiled: bool = True,
) -> Gate:
    """Swap every linear layer of ``model`` for a gated one, in place; returns the gate that sets the coefficients.

    The plain weights are given back layer by layer, so the peak is one packed copy. ``splits``: of the layers that are
    divided among several processes, by path. ``reproducible``: a row's values depend on that row alone, whatever the
    dtype. ``quantized``: hold the weights in int8, with the bank beside them. ``tiled``: on a CPU, hold them in tiles
    for compiled loops where these are the quicker ones. Raises what ``require_called`` raises,
    and FamilyError when a factor is beyond ``activation_dtype``.
    """
    gate = Gate()
    splits = splits or {}
    groups = [part for group in shared_inputs(model) for part in _divided_alike(group, splits)]
    # The head reads only the tokens whose logits are wanted, so that its coefficients are picked by those.
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    require_called(model, bank, groups)
    paths_of_all = {path for group in groups for path in group}
    # How many weights there are decides whether a second, tiled copy of them may be held.
    elements = sum(weight.numel() for path in paths_of_all for weight in model.get_submodule(path).parameters())
    elements += sum(weight.numel() for weight in expert_weights(model).values())
    on_gpu = dispatch.on_gpu(next(model.parameters()))
    tiled_rows = 0 if on_gpu or not tiled else dispatch.tiled_rows(activation_dtype, elements)

    def make(paths: list[str], linears: list[nn.Linear], expert: int | None = None) -> GatedGroup:
        split = splits.get(paths[0])
        # Under tensor parallelism a layer has its shard of W already; factors are stacked whole and sharded alike.
        times = split.exchange.size if split is not None and split.by_output else 1
        outputs = [times * linear.out_features for linear in linears]
        factors = bank.stack(paths, outputs, torch.float64, expert)
        if factors is not None:
            bank.require_finite(factors, activation_dtype, paths)
            if split is not None:
                factors = split.factors(factors, outputs)
        is_head = linears == [head]
        try:
            return GatedGroup(
                linears, factors, gate, activation_dtype, exact, is_head, split, reproducible, tiled_rows, quantized
            )
        except ValueError as error:
            raise FamilyError(", ".join(paths), str(error)) from None

    for paths in groups:
        linears: list[Any] = [model.get_submodule(path) for path in paths]
        assert all(isinstance(linear, nn.Linear) for linear in linears)
        # The product is packed, then the layers that it stands for are replaced, so that their plain weights are free
        # before the next group is packed.
        group = make(paths, linears)
        for position, (path, linear) in enumerate(zip(paths, linears, strict=True)):
            parent, _, name = path.rpartition(".")
            gated = GatedLinear(group, position, linear.in_features, linear.out_features)
            setattr(model.get_submodule(parent), name, gated)
    install_weights(model, bank, gate, activation_dtype, _read_by_others(model, bank, paths_of_all))
    install_experts(model, bank, gate, activation_dtype, make)
    return gate


def require_called(model: nn.Module, bank: Bank, groups: Sequence[Sequence[str]]) -> None:
    """Every module that the bank changes must be one of ``groups`` (see ``shared_inputs``), a weight of all experts of
    a layer, or one that a module of another kind multiplies with.

    Raises:
        ValueError: the bank names a module that is none of these.
        FamilyError: it names one whose weight the model reads without calling the layer, so that an adapter on it
            would change nothing.
    """
    # Three ways in which a change of a module can have an effect: as a gated layer, as weights of experts, as a weight
    # that its module multiplies with.
    known = {path for group in groups for path in group}
    linear = {path for path, module in model.named_modules() if type(module) is nn.Linear}
    others = _read_by_others(model, bank, known)
    for stranger in sorted(bank.modules - known - expert_weights(model).keys() - set(others)):
        if stranger not in linear:
            raise ValueError(f"the bank changes {stranger}, which is not a linear layer of the base")
        reason = "the base reads this layer's weight without calling the layer, so that a LoRA on it changes nothing"
        raise FamilyError(bank.folder_of(stranger), f"{reason}; leave it out of target_modules", stranger)
    if others:
        require_multiplied(model, bank, others)


def _read_by_others(model: nn.Module, bank: Bank, known: set[str]) -> list[str]:
    """Modules that the bank changes and that are no linear layers but multiply with a weight of theirs."""
    return [path for path in sorted(bank.modules - known) if weight_of(model, path) is not None]


def _divided_alike(paths: list[str], splits: Mapping[str, Shard]) -> list[list[str]]:
    """``paths`` in parts that one product can stand for: what is gathered, is gathered layer by layer."""
    parts: dict[str, list[str]] = {}
    for path in paths:
        style = splits[path].style if path in splits else ""
        parts.setdefault(path if style == COLUMNS_GATHERED else style, []).append(path)
    return list(parts.values())


def nbytes(model: nn.Module) -> int:
    """Bytes of the gated products of ``model``, each group counted once."""
    groups = {module.group for module in model.modules() if isinstance(module, GatedLinear)}
    groups |= {group for module in model.modules() if isinstance(module, GatedExperts) for group in module.groups}
    beside = sum(module.nbytes for module in model.modules() if isinstance(module, GroupedExperts))
    return sum(group.nbytes for group in groups) + beside
