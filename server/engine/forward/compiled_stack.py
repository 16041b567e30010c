"""All decoder layers as one module, compiled for the processor.

On a CPU a small step spends as long between its products as in them. Where every layer is of Llama's shape, the
compiled form of ``kernels.cpu.decoder_stack`` takes its steps, but for those of so many rows that another product is
the quicker one. Both read the same weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ladle.kernels import dispatch
from ladle.merging.bank.gated_layers import GatedGroup
from ladle.server.engine.forward.attention import AttentionGroup, PagedContext, TokenBlocks
from ladle.server.engine.forward.fused_layer import FusedDecoderLayer, rotary
from ladle.server.engine.forward.layer_vectors import LayerVectors
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache

CPU = torch.device("cpu")
_COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
_FIRST_TRIED = 16
_ROUNDS = 3
_TRIED_BYTES = 1 << 28
_AS_QUICK = 1.1
"""Rows that are kept apart are worth a little."""
_CHOSEN: dict[tuple[Any, ...], int] = {}
"""What was found, by the shape of the layers: once a process."""
TOGETHER = 512
"""Rows per call: what the layers hold of a row between their products should stay in the processor's caches."""


class DecoderStack(nn.Module):
    """Stands for the decoder layers of a model, all of them fused ones, in its list of layers."""

    def __init__(
        self,
        layers: list[FusedDecoderLayer],
        dtype: torch.dtype,
        vectors: LayerVectors | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.attention_type = layers[0].attention_type
        self._dtype, self._kv_dtype = dtype, kv_dtype or dtype
        self._layers = layers
        self._vectors = vectors
        self._none = np.zeros((len(layers), 0, layers[0].hidden), dtype=np.float32)
        self._compiled = _compiled(layers, dtype)
        self.most_rows = min(group.tiled_rows for layer in layers for group in layer.groups)
        """Rows beyond which the layers as they are have the quicker products."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        paged: PagedContext | None = None,
        **ignored: Any,
    ) -> Tensor:
        """``hidden_states`` [1, tokens, hidden] -> the same shape."""
        # Compiled layers find a token's keys by its blocks, so that they need the layout token by token.
        if paged is not None and paged.token_blocks is not None and hidden_states.shape[1] <= self.most_rows:
            return self._run(hidden_states, position_embeddings, paged)
        # So many rows that other products are quicker, or a forward that is not laid out token by token: the layers as
        # they were.
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings=position_embeddings, paged=paged)
        return hidden_states

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Compiles the layers, and compares each with what it stands for: two rows on a pool of their own."""
        # Of the output's norm; wider where keys and values are rounded to bfloat16 besides.
        bound = 1e-2 if self._kv_dtype == torch.float32 else 3e-2
        x, turns, plain_context = self._trial(2)
        _, _, context = self._trial(2)
        # Layer by layer on the same input, so that an error is not hidden by those of the layers before it.
        for index, layer in enumerate(self._layers):
            plain = layer(x, turns, plain_context).float()
            compiled = self._run(x, turns, context, slice(index, index + 1)).float()
            if not torch.linalg.vector_norm(compiled - plain) <= bound * torch.linalg.vector_norm(plain):
                return False
        return True

    @torch.inference_mode()
    def choose_rows(self) -> None:
        """Find by trying up to how many rows the compiled layers are the quicker ones. Tried only where products are,
        too (``row_limit``): elsewhere it is all rows, and no race may decide the form of a step."""
        if self.most_rows != dispatch.ALL_ROWS:
            shape = (_shape(self._layers[0]), len(self._layers), self._dtype)
            if shape not in _CHOSEN:
                _CHOSEN[shape] = self._quickest_rows()
            self.most_rows = _CHOSEN[shape]

    def _quickest_rows(self) -> int:
        # Upwards from a middling count to the first that is slower; where that one is slower already, downwards to the
        # first that is quicker.
        counts = [count for count in _COUNTS if count >= _FIRST_TRIED]
        if not self._is_quicker(counts[0]):
            fewer = (count for count in reversed(_COUNTS) if count < _FIRST_TRIED and self._is_quicker(count))
            return next(fewer, 1)
        slower = next((index for index, count in enumerate(counts[1:]) if not self._is_quicker(count)), len(counts) - 1)
        return counts[slower]

    def _is_quicker(self, count: int) -> bool:
        # As many layers as a large processor's caches do not hold: in a step they come from memory.
        size = sum(group.nbytes for group in self._layers[0].groups)
        part = slice(0, max(1, min(len(self._layers), _TRIED_BYTES // max(1, size))))
        x, turns, context = self._trial(count)

        def plain() -> None:
            states = x
            for layer in self._layers[part]:
                states = layer(states, turns, context)

        compiled = dispatch.seconds(lambda: self._run(x, turns, context, part), _ROUNDS)
        return compiled <= _AS_QUICK * dispatch.seconds(plain, _ROUNDS)

    def _trial(self, count: int) -> tuple[Tensor, tuple[Tensor, Tensor], PagedContext]:
        """Random states, rotations and a context for ``count`` tokens of one sequence, on a pool of their own; without
        a merge, as no request has stated coefficients yet."""
        first, blocks = self._layers[0], -(-count // BLOCK_SIZE)
        dim = first.attention.shape.head_dim
        cache = KVCache([layer.attention.shape for layer in self._layers], blocks + 1, self._kv_dtype, CPU)
        table, positions = torch.arange(1, blocks + 1)[None], torch.arange(count)
        # Block 0 stays free as in a real pool; the sequence lies in the blocks behind it.
        tiles = torch.arange(blocks * BLOCK_SIZE)
        group = AttentionGroup(0, count, 0, tiles.view(blocks, BLOCK_SIZE), table, tiles)
        token_blocks = TokenBlocks(table.numpy(), np.zeros(count, dtype=np.int64), positions.numpy())
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, count, first.hidden, generator=generator).to(self._dtype)
        angles = torch.rand(1, count, dim // 2, generator=generator).repeat(1, 1, 2)
        first.qkv.gate.open(None)
        context = PagedContext(cache, BLOCK_SIZE + positions, [group], token_blocks)
        return x, (angles.cos().to(self._dtype), angles.sin().to(self._dtype)), context

    def _run(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        paged: PagedContext,
        part: slice = slice(None),
    ) -> Tensor:
        token_blocks = paged.token_blocks
        assert token_blocks is not None
        # The residual stream stays in float32 through all layers and is rounded once, at the end.
        x = hidden_states[0].float().numpy().copy()
        cos, sin = (part[:, 0].float().numpy() for part in rotary(position_embeddings, paged))
        slot_mapping = paged.slot_mapping.numpy()
        scales = [self._scales(index, x.shape[0]) for index in range(4)]
        kv, layers, threads = paged.cache.array[part], _part(self._compiled, part), torch.get_num_threads()
        amounts, vectors = self._steering(x.shape[0])
        vectors = vectors[part]
        # A token sees those before it, which come before it here too: so all layers of the first rows go first.
        for start in range(0, x.shape[0], TOGETHER):
            some = slice(start, start + TOGETHER)
            tokens = dispatch.PagedTokens(
                cos[some],
                sin[some],
                token_blocks.block_table,
                token_blocks.table_rows[some],
                token_blocks.positions[some],
                slot_mapping[some],
            )
            first, second, third, fourth = (np.ascontiguousarray(scale[:, some]) for scale in scales)
            scale_of = (first, second, third, fourth)
            dispatch.run_layers(
                dispatch.LayerPass(x[some], layers, scale_of, tokens, kv, BLOCK_SIZE, threads, amounts[some], vectors)
            )
        return torch.from_numpy(x).to(hidden_states.dtype)[None]

    def _steering(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[``count``, n] amounts and [layers, n, hidden] directions of the steering vectors that any row has."""
        if self._vectors is None or self._vectors.closed:
            return np.zeros((count, 0), dtype=np.float32), self._none
        return self._vectors.arrays()

    def _scales(self, index: int, count: int) -> NDArray[np.float32]:
        """[layers or 1, ``count``, R] coefficients of the rank columns of the product ``index`` of every layer."""
        groups = [layer.groups[index] for layer in self._layers]
        # Layers whose adapters cover the same modules share one table of coefficients; else each gets its own, padded.
        patterns = [None if group.gate.closed else group.pattern for group in groups]
        if patterns.count(patterns[0]) == len(patterns):
            return _scale(groups[0], patterns[0], count)[None]
        parts = [_scale(group, pattern, count) for group, pattern in zip(groups, patterns, strict=True)]
        scales = np.zeros((len(parts), count, max(part.shape[1] for part in parts)), dtype=np.float32)
        for own, part in zip(scales, parts, strict=True):
            own[:, : part.shape[1]] = part
        return scales


def _scale(group: GatedGroup, pattern: int | None, count: int) -> NDArray[np.float32]:
    if pattern is None:
        return np.zeros((count, 0), dtype=np.float32)
    scale: NDArray[np.float32] = group.gate.scale(pattern).float().contiguous().numpy()
    return scale


def _part(layers: dispatch.Layers, part: slice) -> dispatch.Layers:
    """Some of the layers, in the same memory."""
    if part == slice(None):
        return layers
    # Views of the stacked arrays: no weight is copied.
    qkv, out, gate_up, down = (
        dispatch.Product._make(array[part] for array in product)
        for product in (layers.qkv, layers.out, layers.gate_up, layers.down)
    )
    return layers._replace(
        norms=layers.norms[part], windows=layers.windows[part], qkv=qkv, out=out, gate_up=gate_up, down=down
    )


def _compiled(layers: list[FusedDecoderLayer], dtype: torch.dtype) -> dispatch.Layers:
    # Both norms of every layer side by side, [layers, 2, hidden]; products keep their packed memory and gain an axis.
    norms = torch.stack([norm.get_buffer("weight").float() for layer in layers for norm in layer.norms])
    first = layers[0]
    qkv, out, gate_up, down = (
        dispatch.stack_products([layer.groups[index].tiled for layer in layers]) for index in range(4)
    )
    return dispatch.Layers(
        norms.view(len(layers), 2, -1).numpy(),
        float(first.norms[0].eps),
        qkv,
        out,
        gate_up,
        down,
        first.attended,
        float(first.attention.scaling),
        np.array([layer.attention.window or 0 for layer in layers]),
        np.zeros(0, np.int16 if dtype == torch.bfloat16 else np.float32),
    )


def compile_layers(
    model: Any, dtype: torch.dtype, vectors: LayerVectors | None = None, kv_dtype: torch.dtype | None = None
) -> bool:
    """Put a ``DecoderStack`` in the place of the decoder layers of ``model`` if all of them can be compiled; returns
    whether they were. ``vectors``: what its forwards may add to their hidden states; ``kv_dtype``: of the KV pool, if
    it is not ``dtype``, that of the activations."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not dispatch.can_compile():
        return False
    fused = [layer for layer in layers if isinstance(layer, FusedDecoderLayer)]
    # All or nothing: one layer of another activation, shape or weight format keeps the whole stack as it was.
    if (
        not fused
        or len(fused) < len(layers)
        or not all(type(layer.act).__name__ in ("SiLU", "SiLUActivation") for layer in fused)
        or not all(group.tiled is not None for layer in fused for group in layer.groups)
        or len({_shape(layer) for layer in fused}) > 1
    ):
        return False
    stack = DecoderStack(fused, dtype, vectors, kv_dtype)
    if not stack.agrees():
        return False
    stack.choose_rows()
    decoder.layers = nn.ModuleList([stack])
    return True


def _shape(layer: FusedDecoderLayer) -> tuple[Any, ...]:
    """What the layers of a stack have in common."""
    attention = layer.attention
    products = [(group.total, group.tiled.in_features, len(group.tiled.product.bias)) for group in layer.groups]
    return (*products, attention.shape, attention.scaling, layer.norms[0].eps, layer.norms[1].eps)
