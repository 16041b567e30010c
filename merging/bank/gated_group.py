"""A product of one or more linear layers that read the same input, merged in the forward pass by a gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ladle.kernels import dispatch
from ladle.merging.bank.bank import StackedFactors
from ladle.merging.bank.tensor_parallel import Shard


class Gate:
    """The coefficients of the tokens now in the forward pass, shared by every gated layer of one model."""

    def __init__(self) -> None:
        self._coefficients: Tensor | None = None
        self._head_rows: Tensor | None = None
        self._patterns: list[tuple[Tensor, bool]] = []
        self._scales: list[Tensor | None] = []

    def pattern(self, columns: Tensor, head: bool = False) -> int:
        """Register a layer's rank columns; layers with equal columns share one expanded scale per step. ``head``: the
        layer is the output head, which reads only some of the tokens."""
        # Layers whose members have the same ranks have equal columns, as nearly all of a model have: they share one
        # entry.
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
            coefficients = self._coefficients
            if head and self._head_rows is not None:
                coefficients = coefficients.index_select(0, self._head_rows)
            # [tokens, members] -> [tokens, R]: made once per pattern and forward, and shared by all layers of that
            # pattern.
            scale = coefficients.index_select(1, columns)
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
        split: Shard | None = None,
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
            weight,
            bias,
            shrink,
            expand,
            activation_dtype,
            tiled_rows,
            exact and not quantized,
            quantized,
            rounded=quantized and not exact,
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

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """``x`` [n, in] -> [n, out of all layers side by side], merged as the gate says.

        ``tokens`` [n] int64: which token of the forward each row belongs to, where not every token has one row."""
        if self.split is None:
            return self._merged(x, tokens)
        return self.split.after(self._merged(self.split.before(x), tokens))

    def _merged(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        scale = None
        if self.pattern is not None and not self.gate.closed:
            scale = self.gate.scale(self.pattern)
            # One row of coefficients may stand for all tokens.
            scale = scale if tokens is None or scale.shape[0] == 1 else scale.index_select(0, tokens)
        if self.tiled is not None and x.shape[0] <= self.tiled_rows:
            return self.tiled(x, scale)
        assert self.product is not None
        # One product [n, in] x [in, out + R]: reading W is what a small step costs, and A's few rows come with it.
        y = self.product(x)
        if self.expand is None:
            return y
        # The first columns are W x + b, the others A x.
        base = y[:, : self.total]
        if scale is None:
            return base
        if self.expand.plain is not None and dispatch.on_gpu(y):
            return dispatch.expand_gated(base, y[:, self.total :], scale, self.expand.plain, self.spans)
        # The coefficients may be wider than the activations: a bfloat16 coefficient would be off by up to 0.4 %.
        shrunk = (y[:, self.total :] * scale).to(y.dtype)
        return self.expand(shrunk, base)

    def member(self, position: int, x: Tensor) -> Tensor:
        """Output of layer ``position`` for input ``x`` [..., in]; the group's product is made once a distinct ``x``."""
        if len(self.outputs) == 1:
            y = self.forward(x.reshape(-1, x.shape[-1]))
            return y.view(*x.shape[:-1], y.shape[-1])
        # transformers calls q, k and v one after the other with the very same tensor: the first call computes all
        # three, and each output is given away once. A second call of one layer on it computes anew.
        if x is not self._input or self._outputs[position] is None:
            y = self.forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.total)
            self._input = x
            self._outputs = list(y.split(self.outputs, dim=-1))
        output = self._outputs[position]
        assert output is not None
        self._outputs[position] = None
        if all(kept is None for kept in self._outputs):
            self._input = None
        return output
