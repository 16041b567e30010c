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
from ladle.merging.bank.bank import Bank, StackedFactors
from ladle.merging.bank.tensor_parallel import COLUMNS_GATHERED, Split
from ladle.merging.errors import FamilyError


class Gate:
    """The coefficients of the tokens now in the forward pass, shared by every gated layer of one model."""

    def __init__(self) -> None:
        self._coefficients: Tensor | None = None
        self._head_rows: Tensor | None = None
        self._patterns: list[tuple[Tensor, bool]] = []
        self._scales: list[Tensor | None] = []

    def pattern(self, columns: Tensor, head: bool = False) -> int:
        """Register a layer's rank columns; layers with equal columns share one expanded scale a step. ``head``: the
        layer is the output head, which reads only some of the tokens."""
        for index, (known, known_head) in enumerate(self._patterns):
            if head == known_head and torch.equal(known, columns):
                return index
        self._patterns.append((columns, head))
        self._scales.append(None)
        return len(self._patterns) - 1

    def open(self, coefficients: Tensor | None, head_rows: Tensor | None = None) -> None:
        """Set ``coefficients`` [tokens, members] for the next forward; None: the plain base for every token.

        ``head_rows`` [n] int64: the tokens whose logits are wanted, in order; None: all.
        """
        self._coefficients = coefficients
        self._head_rows = head_rows
        self._scales = [None] * len(self._patterns)

    @property
    def closed(self) -> bool:
        return self._coefficients is None

    def scale(self, pattern: int) -> Tensor:
        """[tokens, R] coefficients of each rank column; for the output head [wanted tokens, R]."""
        scale = self._scales[pattern]
        if scale is None:
            assert self._coefficients is not None
            columns, head = self._patterns[pattern]
            rows = self._coefficients
            if head and self._head_rows is not None:
                rows = rows.index_select(0, self._head_rows)
            scale = rows.index_select(1, columns)
            self._scales[pattern] = scale
        return scale


class GatedGroup:
    """One or more linear layers that read the same input, as one product."""

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        factors: StackedFactors | None,
        gate: Gate,
        activation_dtype: torch.dtype,
        exact: bool,
        head: bool = False,
        split: Split | None = None,
        reproducible: bool = False,
        tiled_rows: int = 0,
        quantized: bool = False,
    ) -> None:
        """``split``: how ``linears`` and ``factors``, which are this process's part already, were divided.
        ``reproducible``: see ``PackedLinear``. ``tiled_rows``: up to how many rows go through a ``TiledProduct``.
        ``quantized``: hold the layers' weights in int8; all rows do then."""
        # In the activations' dtype from here on, so that factors are not rounded to the dtype of the base's weights.
        weight = torch.cat([linear.weight.detach() for linear in linears]).to(activation_dtype)
        self.dtype = activation_dtype
        self.outputs = [linear.out_features for linear in linears]
        self.total = sum(self.outputs)
        self.gate = gate
        self.split = split
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat(
                [
                    linear.bias.detach() if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
                    for linear in linears
                ]
            ).to(activation_dtype)
        self.pattern: int | None = None
        self.expand: dispatch.PackedLinear | None = None
        self.product: dispatch.PackedLinear | None = None
        self.spans: Tensor | None = None
        shrink = expand = None
        if factors is not None:
            factors = factors.padded(self.total)
            # Concatenated LoRA: A of all members below W, B beside it, and one coefficient per rank column between.
            shrink, expand = factors.shrink.to(weight), factors.expand.to(weight)
            self.pattern = gate.pattern(factors.columns.to(weight.device), head)
        # Int8 weights have no other form; reproducible rows must take one path, however many of them come.
        tiled_rows = dispatch.ALL_ROWS if quantized or (reproducible and tiled_rows) else tiled_rows
        self.tiled = dispatch.tiled_product(
            weight, bias, shrink, expand, activation_dtype, tiled_rows, exact and not quantized, quantized
        )
        if quantized and self.tiled is None:
            reason = dispatch.tiling_obstacle(weight, shrink, expand, activation_dtype, quantized)
            raise ValueError(f"quantize int8 is not possible here: {reason}")
        self.tiled_rows = 0 if self.tiled is None else tiled_rows
        if self.tiled_rows < dispatch.ALL_ROWS:
            self._pack(weight, bias, shrink, expand, reproducible)
            if factors is not None and factors.blocks and dispatch.on_gpu(weight):
                self.spans = dispatch.spans_of(factors.blocks, self.total, weight.device)
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    def _pack(
        self,
        weight: Tensor,
        bias: Tensor | None,
        shrink: Tensor | None,
        expand: Tensor | None,
        reproducible: bool,
    ) -> None:
        if shrink is not None and expand is not None:
            # One GEMM computes the base outputs and the LoRA down-projection A x.
            weight = torch.cat([weight, shrink])
            bias = None if bias is None else torch.cat([bias, bias.new_zeros(shrink.shape[0])])
            self.expand = dispatch.PackedLinear(expand, None, self.dtype, reproducible)
        self.product = dispatch.PackedLinear(weight, bias, self.dtype, reproducible)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.product, self.expand, self.tiled) if part is not None)

    def forward(self, rows: Tensor) -> Tensor:
        """``rows`` [n, in] -> [n, out of all layers side by side], merged as the gate says."""
        if self.split is None:
            return self._merged(rows)
        return self.split.after(self._merged(self.split.before(rows)))

    def _merged(self, rows: Tensor) -> Tensor:
        merges = self.pattern is not None and not self.gate.closed
        if self.tiled is not None and rows.shape[0] <= self.tiled_rows:
            return self.tiled(rows, self.gate.scale(self.pattern) if merges and self.pattern is not None else None)
        assert self.product is not None
        y = self.product(rows)
        if self.expand is None:
            return y
        # The first columns are W x + b, the others A x.
        base = y[:, : self.total]
        if not merges:
            return base
        assert self.pattern is not None
        if self.expand.plain is not None and dispatch.on_gpu(y):
            scale = self.gate.scale(self.pattern)
            return dispatch.expand_gated(base, y[:, self.total :], scale, self.expand.plain, self.spans)
        # The coefficients may be wider than the activations: a bfloat16 coefficient would be off by up to 0.4 %.
        shrunk = (y[:, self.total :] * self.gate.scale(self.pattern)).to(y.dtype)
        return self.expand(shrunk, base)

    def member(self, position: int, x: Tensor) -> Tensor:
        """Output of layer ``position`` for input ``x`` [..., in]; the group's product is made once a distinct ``x``."""
        if len(self.outputs) == 1:
            y = self.forward(x.reshape(-1, x.shape[-1]))
            return y.view(*x.shape[:-1], y.shape[-1])
        if x is not self._input or self._outputs[position] is None:
            y = self.forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.total)
            # The first layer of a group that is called computes for all; the others take their slice of the same input.
            self._input = x
            self._outputs = list(y.split(self.outputs, dim=-1))
        output = self._outputs[position]
        assert output is not None
        self._outputs[position] = None
        if all(kept is None for kept in self._outputs):
            self._input = None
        return output


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
    splits: Mapping[str, Split] | None = None,
    reproducible: bool = False,
    quantized: bool = False,
) -> Gate:
    """Swap every linear layer of ``model`` for a gated one, in place; returns the gate that sets the coefficients.

    The plain weights are given back layer by layer, so the peak is one packed copy. ``splits``: of the layers that are
    divided among several processes, by path. ``reproducible``: a row's values depend on that row alone, whatever the
    dtype. ``quantized``: hold the weights in int8, with the bank beside them. Raises what ``require_called`` raises,
    and FamilyError when a factor is beyond ``activation_dtype``.
    """
    gate = Gate()
    splits = splits or {}
    groups = [part for group in shared_inputs(model) for part in _divided_alike(group, splits)]
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    require_called(model, bank, groups)
    paths_of_all = {path for group in groups for path in group}
    elements = sum(weight.numel() for path in paths_of_all for weight in model.get_submodule(path).parameters())
    tiled_rows = 0 if dispatch.on_gpu(next(model.parameters())) else dispatch.tiled_rows(activation_dtype, elements)
    for paths in groups:
        linears = [model.get_submodule(path) for path in paths]
        assert all(isinstance(linear, nn.Linear) for linear in linears)
        split = splits.get(paths[0])
        # Under tensor parallelism a layer has its shard of W already; factors are stacked whole and sharded alike.
        times = split.exchange.size if split is not None and split.by_output else 1
        outputs: list[int] = [times * linear.out_features for linear in linears]  # type: ignore[misc,operator]
        factors = bank.stack(paths, outputs, torch.float64)
        if factors is not None:
            bank.require_finite(factors, activation_dtype, paths)
            if split is not None:
                factors = split.factors(factors, outputs)
        is_head = linears == [head]
        try:
            group = GatedGroup(
                linears,  # type: ignore[arg-type]
                factors,
                gate,
                activation_dtype,
                exact,
                is_head,
                split,
                reproducible,
                tiled_rows,
                quantized,
            )
        except ValueError as error:
            raise FamilyError(", ".join(paths), str(error)) from None
        for position, (path, linear) in enumerate(zip(paths, linears, strict=True)):
            parent, _, name = path.rpartition(".")
            gated = GatedLinear(group, position, linear.in_features, linear.out_features)  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), name, gated)
    return gate


def require_called(model: nn.Module, bank: Bank, groups: Sequence[Sequence[str]]) -> None:
    """Every module that the bank changes must be one of ``groups`` (see ``shared_inputs``).

    Raises:
        ValueError: the bank names a module that is not a linear layer of ``model``.
        FamilyError: it names one whose weight the model reads without calling the layer, so that an adapter on it
            would change nothing.
    """
    known = {path for group in groups for path in group}
    linear = {path for path, module in model.named_modules() if type(module) is nn.Linear}
    for stranger in sorted(bank.modules - known):
        if stranger not in linear:
            raise ValueError(f"the bank changes {stranger}, which is not a linear layer of the base")
        reason = "the base reads this layer's weight without calling the layer, so that a LoRA on it changes nothing"
        raise FamilyError(bank.folder_of(stranger), f"{reason}; leave it out of target_modules", stranger)


def _divided_alike(paths: list[str], splits: Mapping[str, Split]) -> list[list[str]]:
    """``paths`` in parts that one product can stand for: what is gathered, is gathered layer by layer."""
    parts: dict[str, list[str]] = {}
    for path in paths:
        style = splits[path].style if path in splits else ""
        parts.setdefault(path if style == COLUMNS_GATHERED else style, []).append(path)
    return list(parts.values())


def nbytes(model: nn.Module) -> int:
    """Bytes of the gated products of ``model``, each group counted once."""
    groups = {module.group for module in model.modules() if isinstance(module, GatedLinear)}
    return sum(group.nbytes for group in groups)
