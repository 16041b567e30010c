"""Weights that a module multiplies with by itself, as routers of experts do, merged in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladle.kernels import dispatch
from ladle.merging.bank.bank import Bank, StackedFactors
from ladle.merging.bank.gated_group import Gate
from ladle.merging.checkpoints.experts import find_routers
from ladle.merging.exceptions import FamilyError

_ATTRIBUTES = frozenset({"__get__", "size", "dim", "stride", "numel", "element_size", "is_floating_point"})
_CASTS = frozenset({"type", "to", "float", "double", "half", "bfloat16", "contiguous"})


class WeightProduct:
    """Products with one weight, in whatever dtype it is cast to: y = W x + B (c * (A x)), the latter in float32 or
    wider. The value of a row does not depend on the others where ``PackedLinear`` keeps to that."""

    def __init__(self, factors: StackedFactors | None, gate: Gate, dtype: torch.dtype, device: torch.device) -> None:
        self.gate = gate
        self._by_dtype: dict[torch.dtype, dispatch.PackedLinear] = {}
        self._dtype = torch.promote_types(dtype, torch.float32)
        self._low: tuple[dispatch.PackedLinear, dispatch.PackedLinear, int] | None = None
        if factors is not None:
            shrink, expand = (dispatch.PackedLinear(part.to(device), None, self._dtype)
                              for part in (factors.shrink, factors.expand))  # fmt: skip
            self._low = shrink, expand, gate.pattern(factors.columns.to(device))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x`` [..., in] of the dtype of ``weight`` [out, in] -> [..., out]."""
        # Packed once per dtype that the module casts its weight to: a router may multiply in float32 in a model of 16
        # bits.
        if weight.dtype not in self._by_dtype:
            self._by_dtype[weight.dtype] = dispatch.PackedLinear(weight, None, weight.dtype)
        flat = x.reshape(-1, x.shape[-1])
        y = self._by_dtype[weight.dtype](flat)
        y = y if bias is None else y + bias
        if self._low is not None and not self.gate.closed:
            shrink, expand, pattern = self._low
            # In float32 or wider, whatever the weight is cast to: the delta is small beside W x.
            low = shrink(flat.to(self._dtype)) * self.gate.scale(pattern)
            y = y + expand(low.to(self._dtype)).to(y.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])


class Probe:
    """Stands for a product while a model is looked at; ``seen``: whether the weight was multiplied with."""

    seen = False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self.seen = True
        return F.linear(x, weight, bias)


class GatedWeight(Tensor):
    """A weight [out, in] that may be cast and multiplied with (``F.linear``), for which ``product`` is asked; nothing
    else.

    Raises:
        RuntimeError: it is used in another way.
    """

    product: WeightProduct | Probe

    @classmethod
    def of(cls, weight: Tensor, product: WeightProduct | Probe) -> GatedWeight:
        gated = weight.detach().as_subclass(cls)
        gated.product = product
        return gated

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        # Everything that a module does with the weight comes here. Products go to ``product``; shapes and casts are
        # answered, and a cast stays a gated weight; whatever else would read the plain values is refused, not computed
        # wrongly.
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear:
                named = dict(zip(("input", "weight", "bias"), args, strict=False)) | options
                if isinstance(named["weight"], cls) and not isinstance(named["input"], cls):
                    plain = named["weight"].as_subclass(Tensor)
                    return named["weight"].product.linear(named["input"], plain, named.get("bias"))
            if function.__name__ in _ATTRIBUTES and not isinstance(attribute := function(*args, **options), Tensor):
                return attribute
            if function.__name__ in _CASTS and isinstance(args[0], cls):
                result = function(*args, **options)
                same = result is args[0] or not isinstance(result, Tensor)
                return result if same else cls.of(result, args[0].product)
        raise RuntimeError(f"{function.__name__} of a weight that is merged in the forward pass")


def weight_of(model: nn.Module, path: str) -> Tensor | None:
    """The weight [out, in] of a module that is no linear layer; None where there is no such module or weight."""
    module: nn.Module | None = dict(model.named_modules()).get(path)
    weight = None if module is None else module._parameters.get("weight")
    return weight if weight is not None and weight.ndim == 2 and type(module) is not nn.Linear else None


def require_multiplied(model: nn.Module, bank: Bank, paths: list[str]) -> None:
    """The weights of the modules ``paths``, which ``bank`` changes, must be multiplied with, and used in no other way.

    Raises:
        FamilyError: naming the member's folder and the module.
    """
    for path in paths:
        try:
            seen = _multiplies(model, path)
        except RuntimeError as error:
            reason = f"{error}: a LoRA on it cannot be mixed; leave it out of target_modules and target_parameters"
            raise FamilyError(bank.folder_of(path), reason, path) from error
        if not seen:
            reason = "the base does not multiply with this weight, so that a LoRA on it changes nothing"
            raise FamilyError(bank.folder_of(path), f"{reason}; leave it out of target_parameters", path)


def install_weights(model: nn.Module, bank: Bank, gate: Gate, dtype: torch.dtype, changed: list[str]) -> None:
    """Have the modules ``changed`` of ``model`` multiply with gated weights, in place; on a CPU all routers of experts.

    Raises:
        FamilyError: a factor is beyond what ``dtype`` can hold.
    """
    on_gpu = dispatch.on_gpu(next(model.parameters()))
    # On a CPU the routers of experts, too, whether or not a member changes them: their own product depends on how many
    # tokens a step has.
    routers = () if on_gpu else (path for path in find_routers(model) if _multiplies_alone(model, path))
    for path in dict.fromkeys((*changed, *routers)):
        module = model.get_submodule(path)
        weight: Any = module.weight
        factors = bank.stack([path], [weight.shape[0]], torch.float64)
        if factors is not None:
            bank.require_finite(factors, dtype, [path])
        weight.data = weight.data.to(dtype)
        _swap(module, WeightProduct(factors, gate, dtype, weight.device))


def _multiplies_alone(model: nn.Module, path: str) -> bool:
    try:
        return _multiplies(model, path)
    except RuntimeError:
        return False


def _multiplies(model: nn.Module, path: str) -> bool:
    """Whether the module ``path`` multiplies with its weight. Raises RuntimeError where it does something else."""
    # A forward with a stand-in for the weight shows what the module does with it; the parameter is put back in its old
    # place, since the order of parameters is visible.
    module, probe = model.get_submodule(path), Probe()
    order = list(module._parameters)
    weight = _swap(module, probe)
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)
    finally:
        del module.weight
        kept = module._parameters | {"weight": weight}
        module._parameters.clear()
        module._parameters.update((name, kept[name]) for name in order)
    return probe.seen


def _swap(module: nn.Module, product: WeightProduct | Probe) -> nn.Parameter:
    weight = module._parameters.pop("weight")
    assert weight is not None
    module.weight = GatedWeight.of(weight.data, product)
    return weight
