"""All decoder layers as one module: a few rows go through compiled layers, more of them through the layers as they are.

On a CPU a small step spends as long between its products as in them. Where every layer is of Llama's shape, the
compiled form of ``kernels.cpu_layer`` takes the steps whose rows fit; it holds a copy of its own of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ladle.kernels import dispatch
from ladle.merging.bank.gated_layers import GatedGroup
from ladle.server.engine.forward.attention import AttentionGroup, PagedContext, TokenPlaces
from ladle.server.engine.forward.fused_layer import FusedDecoderLayer, rotary
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache

CPU = torch.device("cpu")
MOST_ROWS = 64
"""Rows up to which compiled layers are the quicker ones."""
MOST_BYTES = 1 << 30
"""Weights up to which they are used: reading takes most of a larger model's time, and a copy of it is dear."""


class DecoderStack(nn.Module):
    """Stands for the decoder layers of a model, all of them fused ones, in its list of layers.

    ``nbytes``: of the compiled layers' weights.
    """

    def __init__(self, layers: list[FusedDecoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.attention_type = layers[0].attention_type
        self._layers = layers
        self._compiled = [_compiled(layer) for layer in layers]
        self.nbytes = sum(
            product.weight.nbytes + product.expand.nbytes
            for layer in self._compiled
            for product in (layer.qkv, layer.out, layer.gate_up, layer.down)
        )

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        paged: PagedContext | None = None,
        **ignored: Any,
    ) -> Tensor:
        """``hidden_states`` [1, tokens, hidden] -> the same shape."""
        if paged is not None and paged.places is not None and hidden_states.shape[1] <= MOST_ROWS:
            return self._run(hidden_states, position_embeddings, paged)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings=position_embeddings, paged=paged)
        return hidden_states

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Compiles the layers, and compares them with what they stand for: two rows on a pool of their own."""
        first = self._layers[0]
        caches = [KVCache([layer.attention.shape for layer in self._layers], 3, torch.float32, CPU) for _ in range(2)]
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 2, first.qkv.product.in_features, generator=generator)
        angles = torch.rand(1, 2, first.attention.shape.head_dim // 2, generator=generator).repeat(1, 1, 2)
        slots, positions = torch.tensor([16, 17]), torch.tensor([0, 1])
        group = AttentionGroup(0, 2, 0, positions[None], torch.tensor([[1]]), torch.arange(BLOCK_SIZE))
        places = TokenPlaces(np.array([[1]]), np.zeros(2, dtype=np.int64), positions.numpy())
        first.qkv.gate.open(None)
        plain, compiled = (
            self(x, (angles.cos(), angles.sin()), PagedContext(cache, slots, [group], given))
            for cache, given in zip(caches, (None, places), strict=True)
        )
        return torch.allclose(plain, compiled, rtol=1e-2, atol=1e-2 * float(plain.abs().mean()))

    def _run(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], paged: PagedContext) -> Tensor:
        places = paged.places
        assert places is not None
        x = hidden_states[0].numpy().copy()
        cos, sin = rotary(position_embeddings, paged)
        rows = dispatch.LayerRows(
            cos[:, 0].numpy(), sin[:, 0].numpy(), places.blocks, places.tables, places.positions, paged.slots.numpy()
        )
        threads = torch.get_num_threads()
        nothing = np.zeros((x.shape[0], 0), dtype=np.float32)
        known: dict[int | None, NDArray[np.float32]] = {None: nothing}

        def scale(group: GatedGroup) -> NDArray[np.float32]:
            pattern = None if group.gate.closed else group.pattern
            if pattern not in known:
                assert pattern is not None
                known[pattern] = group.gate.scale(pattern).numpy()
            return known[pattern]

        for layer, original, kv in zip(self._compiled, self._layers, paged.cache.arrays, strict=True):
            qkv, out, gate_up, down = (scale(group) for group in original.groups)
            dispatch.run_layer(x, layer, (qkv, out, gate_up, down), rows, kv, BLOCK_SIZE, threads)
        return torch.from_numpy(x)[None]


def _compiled(layer: FusedDecoderLayer) -> dispatch.Layer:
    norms = torch.stack([norm.get_buffer("weight") for norm in layer.norms])
    qkv, out, gate_up, down = (_product(group) for group in layer.groups)
    eps, scaling, window = layer.norms[0].eps, layer.attention.scaling, layer.attention.window
    return dispatch.Layer(norms.numpy(), float(eps), qkv, out, gate_up, down, float(scaling), int(window or 0))


def _product(group: GatedGroup) -> dispatch.Product:
    weight = group.product.half_weight()
    expand = np.zeros((0, group.total), dtype=np.float16)
    if group.expand is not None:
        expand = np.ascontiguousarray(group.expand.half_weight().T)
    bias = group.product.bias
    return dispatch.Product(
        weight.view(np.uint16),
        np.zeros(0, dtype=np.float32) if bias is None else bias[: group.total].numpy().copy(),
        expand.view(np.uint16),
    )


def compile_layers(model: Any) -> int:
    """Put a ``DecoderStack`` in the place of the decoder layers of ``model`` if all of them can be compiled and it
    pays; returns the bytes that it takes."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not dispatch.can_compile():
        return 0
    fused = [layer for layer in layers if isinstance(layer, FusedDecoderLayer)]
    products = [product for layer in fused for group in layer.groups for product in (group.product, group.expand)]
    if (
        len(fused) < len(layers)
        or not all(type(layer.act).__name__ in ("SiLU", "SiLUActivation") for layer in fused)
        or not all(product is None or product.half for product in products)
        or sum(product.nbytes for product in products if product is not None) > MOST_BYTES
    ):
        return 0
    stack = DecoderStack(fused)
    if not stack.agrees():
        return 0
    decoder.layers = nn.ModuleList([stack])
    return stack.nbytes
