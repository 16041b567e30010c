"""Linear layers divided among several processes (tensor parallelism): what each keeps, and what they exchange.

Which layer is divided how, the architecture says itself (transformers' ``tp_plan``). A layer divided by its outputs has
a part of every output; one divided by its inputs gives a summand of the whole output. Low-rank factors are divided with
the layer they change: B by outputs, A by inputs, so a merge needs no exchange of its own (our reconstruction; both
follow from y = W x + B (c * (A x)) being linear in every part).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ladle.merging.bank.bank import StackedFactors
from ladle.merging.exceptions import InputError

COLUMNS, COLUMNS_GATHERED = "colwise", "colwise_gather_output"
ROWS, ROWS_OF_ALL = "rowwise", "rowwise_split_input"
STYLES = (COLUMNS, COLUMNS_GATHERED, ROWS, ROWS_OF_ALL)
_WHOLE = ("replicate", "replicated_with_grad_allreduce", "embedding_rowwise", "embedding_colwise")
"""What every process may as well keep as a whole: norms, and embeddings, which are read a row a token."""


class RankExchange(Protocol):
    """Processes that compute the same forward, each with its part of the weights.

    Attributes:
        rank: which of them this one is, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all processes' ``x``, the same for all of them. May change ``x``."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """All processes' ``x`` [..., n] side by side, [..., size * n]."""
        ...


class Link:
    """An exchange that is quiet until ``open`` is set: what is computed while a model is looked at has the right shapes
    and this process's own values, and no process waits for another. Implements ``RankExchange``."""

    def __init__(self, exchange: RankExchange) -> None:
        self.rank = exchange.rank
        self.size = exchange.size
        self.open = False
        self._exchange = exchange

    def sum(self, x: Tensor) -> Tensor:
        return self._exchange.sum(x) if self.open else x

    def gather(self, x: Tensor) -> Tensor:
        return self._exchange.gather(x) if self.open else torch.cat([x] * self.size, dim=-1)


@dataclass(frozen=True)
class Shard:
    """How a linear layer is divided among processes.

    Attributes:
        style: one of ``STYLES``.
        exchange: the processes.
    """

    style: str
    exchange: RankExchange

    @property
    def by_output(self) -> bool:
        return self.style in (COLUMNS, COLUMNS_GATHERED)

    def share(self, count: int) -> slice:
        """What this process has of ``count`` rows or columns."""
        part = count // self.exchange.size
        return slice(self.exchange.rank * part, (self.exchange.rank + 1) * part)

    def before(self, x: Tensor) -> Tensor:
        """What this process multiplies of an input [..., in]."""
        return x[..., self.share(x.shape[-1])] if self.style == ROWS_OF_ALL else x

    def after(self, y: Tensor) -> Tensor:
        """The layer's output from the product of this process [..., out]: its part, or the whole where all need it."""
        if self.style == COLUMNS:
            return y
        return self.exchange.gather(y) if self.style == COLUMNS_GATHERED else self.exchange.sum(y)

    def factors(self, factors: StackedFactors, outputs: Sequence[int]) -> StackedFactors:
        """This process's part of the factors of layers with ``outputs`` rows in all."""
        # Row-parallel: A is cut along the input like W, and the partial sums of W x and B A x are reduced together.
        if not self.by_output:
            return StackedFactors(
                factors.shrink[:, self.share(factors.shrink.shape[1])], factors.expand, factors.columns, factors.blocks
            )
        # Column-parallel: A is whole, B loses the other ranks' outputs, module by module; blocks move up.
        starts = list(itertools.accumulate(outputs, initial=0))
        own = [self.share(count) for count in outputs]
        expand = [factors.expand[start + s.start : start + s.stop] for start, s in zip(starts, own, strict=False)]
        kept = list(itertools.accumulate((s.stop - s.start for s in own), initial=0))
        spans = itertools.pairwise(kept)
        blocks = tuple((*edges, *block[2:]) for edges, block in zip(spans, factors.blocks, strict=True))
        return StackedFactors(factors.shrink, torch.cat(expand), factors.columns, blocks)


def split_linears(model: Any, exchange: RankExchange) -> dict[str, Shard]:
    """Keep this process's part of every linear layer of ``model`` that its plan divides, in place; how, by path.

    Until a layer is swapped for a gated one, hooks exchange what has to be.

    Raises:
        InputError: the plan is missing, has parts that are not linear layers, or does not come out even.
    """
    plan: dict[str, str] = dict(model.tp_plan or {})
    size = exchange.size
    strange = sorted(set(plan.values()) - {*STYLES, *_WHOLE})
    if strange or not plan:
        kind = type(model).__name__
        reason = f"the plan of {kind} has {strange[0]}" if strange else f"{kind} has no plan of how it is divided"
        raise InputError("tensor_parallel", size, "1", reason)
    # Attention is divided by whole heads, which the layers' sizes alone would not show.
    text = model.config.get_text_config()
    for what, key in (("attention heads", "num_attention_heads"), ("key/value heads", "num_key_value_heads")):
        heads = getattr(text, key, None) or size
        if heads % size:
            raise InputError("tensor_parallel", size, f"a divisor of {heads}, the {what}")
    splits: dict[str, Shard] = {}
    for path, linear in model.named_modules():
        # The plan names layers once for all of a stack: numbers in a path become a star.
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", path))
        if type(linear) is not nn.Linear or style not in STYLES:
            continue
        splits[path] = split = Shard(style, exchange)
        divided = linear.out_features if split.by_output else linear.in_features
        if divided % size:
            raise InputError("tensor_parallel", size, f"a divisor of {divided}, the size of {path}")
        _keep(linear, split)
    return splits


def _keep(linear: nn.Linear, split: Shard) -> None:
    """This process's part of one layer. Copies, so that what the others have can be given back."""
    weight = linear.weight.detach()
    bias: nn.Parameter | None = linear.bias
    if split.by_output:
        # Weight rows are outputs, weight columns inputs.
        own = split.share(linear.out_features)
        weight, linear.out_features = weight[own].clone(), own.stop - own.start
        bias = None if bias is None else nn.Parameter(bias.detach()[own].clone(), requires_grad=False)
    else:
        own = split.share(linear.in_features)
        weight, linear.in_features = weight[:, own].clone(), own.stop - own.start
        # Of a sum: one of them adds it.
        bias = bias if split.exchange.rank == 0 else None
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", bias)
    linear.register_forward_pre_hook(lambda _, inputs: (split.before(inputs[0]), *inputs[1:]))
    linear.register_forward_hook(lambda _, inputs, output: split.after(output))
