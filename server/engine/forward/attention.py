"""Attention over the KV pool, registered with transformers so that any of its decoders runs on it.

A forward takes the tokens of many lanes side by side in one row. Each step lays out ``AttentionGroup``s: lanes in
decode whose lengths share a bucket, and the query tiles of one prefill chunk. A group is one call, so a step costs a
few calls per layer whatever the number of lanes. A lane's bucket and tiles follow from its own positions alone:
together with row-invariant products this is why a sequence computes the same values whatever shares its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ladle.kernels import dispatch
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache, KVShape

IMPLEMENTATION = "ladle_paged"
TOGETHER = 4
"""Queries that share keys are attended to in multiples of so many: with other counts torch's buffers of a second thread
begin where MKL sums in another order, and which thread a lane falls to depends on its batch."""


def bucket_blocks(blocks: int) -> int:
    """The padded number of blocks for a lane of ``blocks``: 4, then two steps an octave (4, 8, 12, 16, 24, 32,
    48...).
    """
    if blocks <= 4:
        return 4
    # The largest power of two below; with a step halfway to the next one, so that little is padded.
    octave = 1 << ((blocks - 1).bit_length() - 1)
    middle = octave + octave // 2
    return middle if blocks <= middle and octave >= 8 else 2 * octave


@dataclass
class AttentionGroup:
    """Queries that attend in one call.

    Attributes:
        start: the first of its tokens in the flat batch.
        stop: the one after the last.
        left_padding: how many of the first queries are padding; some of the last may be too.
        positions: [tiles, tile] int64, of the queries in their sequences.
        block_table: [tiles or 1, blocks] int64, KV blocks; one row is shared by all tiles of a prefill.
        keys: [blocks * BLOCK_SIZE] int64, 0, 1, 2..., or [tiles, 1, blocks * BLOCK_SIZE], the positions of the keys
            where they do not follow their blocks.
        visible: [tile, blocks * BLOCK_SIZE] bool, what a query may see of the keys at or before its own position, None
            for all of them; candidates at one position see themselves and not each other.
    """

    start: int
    stop: int
    left_padding: int
    positions: Tensor
    block_table: Tensor
    keys: Tensor
    visible: Tensor | None = None
    _masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, folded: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [tiles, 1, queries, keys]: causal, within ``window`` when the layer slides. The first
        folded * tile rows are the queries', the rest fills up to a multiple of ``TOGETHER``."""
        mask = self._masks.get((folded, window, dtype))
        if mask is None:
            query = self.positions[:, :, None]
            # Causal by absolute position; ``visible`` keeps the candidates of one lane from seeing each other.
            allowed = self.keys <= query
            if self.visible is not None:
                allowed &= self.visible
            if window is not None:
                allowed &= self.keys > query - window
            mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
            # The query heads that share a key head are further rows of the same tile, and see the same keys.
            mask = mask[:, None].repeat(1, 1, folded, 1)
            if spare := -mask.shape[2] % TOGETHER:
                mask = F.pad(mask, (0, 0, 0, spare))
            self._masks[(folded, window, dtype)] = mask
        return mask


@dataclass(frozen=True)
class TokenBlocks:
    """Where each token of a step is. It sees what its blocks hold before its position, and itself.

    Attributes:
        block_table: [lanes, blocks] int64.
        table_rows: [tokens] int64, the row of the block table that is the token's.
        positions: [tokens] int64, its position in its sequence.
    """

    block_table: NDArray[np.int64]
    table_rows: NDArray[np.int64]
    positions: NDArray[np.int64]

    @classmethod
    def none(cls) -> TokenBlocks:
        """What stands in a forward that nothing looks into token by token."""
        return cls(*np.zeros((3, 0), dtype=np.int64))


@dataclass
class PagedContext:
    """What the layers of one forward need.

    Attributes:
        cache: the KV pool.
        slot_mapping: [tokens] int64, where new keys and values go.
        groups: which queries attend in one call.
        token_blocks: the same token by token, for the compiled layers; None where there is no such thing.
        widened: attend in float32 whatever the pool holds: how bfloat16 is multiplied may depend on how much of it
            there is.
        rotary: what fused layers made of this forward's position embeddings, and of which.
    """

    cache: KVCache
    slot_mapping: Tensor
    groups: list[AttentionGroup]
    token_blocks: TokenBlocks | None = None
    widened: bool = False
    rotary: tuple[Tensor, tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class LayerAttention:
    """How one layer attends.

    Attributes:
        layer: its index in the pool.
        shape: what it stores per token.
        scaling: factor of the scores q k.
        window: tokens that a query sees, itself included; None for all before it.
        softcap: scores s become softcap * tanh(s / softcap); None where they stay.
    """

    layer: int
    shape: KVShape
    scaling: float
    window: int | None
    softcap: float | None


class AttentionProbe:
    """Learns from one plain forward how each layer attends.

    Attributes:
        layers: what was learned, by layer.
        calls: how often attention was computed.
        sinks: a layer has learned attention sinks.
        both_ways: a layer lets tokens see those that come after them.
        options: names of what a layer gave besides that this attention does not know and that changes what it computes.
    """

    _HARMLESS = frozenset({"position_ids", "position_embeddings", "use_cache", "output_attentions", "is_causal",
                           "cache_position", "output_hidden_states", "return_dict", "logits_to_keep", "s_aux",
                           "output_router_logits", "head_mask", "layer_idx", "deterministic"})  # fmt: skip

    def __init__(self) -> None:
        self.layers: dict[int, LayerAttention] = {}
        self.calls = 0
        self.sinks = False
        self.both_ways = False
        self.options: set[str] = set()

    def note(self, attention: LayerAttention, module: nn.Module, options: dict[str, Any]) -> None:
        """Take down one call."""
        self.layers[attention.layer] = attention
        self.calls += 1
        self.sinks |= options.get("s_aux") is not None
        # A layer says whether it is causal by an option of the call, or else by an attribute of its module.
        causal = options.get("is_causal")
        self.both_ways |= not (getattr(module, "is_causal", True) if causal is None else causal)
        self.options |= {name for name, given in options.items() if given is not None} - self._HARMLESS


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """``q`` [tiles, kv heads, queries, d] -> the same shape; ``mask`` as of ``AttentionGroup.mask``."""
    queries = q.shape[2]
    if softcap is None:
        # Padding queries are zeros under a mask of zeros: they attend to everything and are cut off again.
        filled = F.pad(q, (0, 0, 0, mask.shape[2] - queries)) if mask.shape[2] > queries else q
        return F.scaled_dot_product_attention(filled, k, v, attn_mask=mask, scale=scaling)[:, :, :queries]
    # Logit soft-capping is not in the library's fused attention, so it is written out.
    scores = _products(q, k) * scaling
    scores = softcap * torch.tanh(scores / softcap) + mask[:, :, :queries]
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q k^T. A single tile is multiplied in another order than several, so it is computed as two."""
    if q.shape[0] > 1:
        return q @ k.transpose(2, 3)
    return (q.expand(2, -1, -1, -1) @ k.expand(2, -1, -1, -1).transpose(2, 3))[:1]


def paged_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    paged: PagedContext | AttentionProbe | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: ``query`` [1, heads, tokens, d], ``key`` [1, kv heads, tokens, d], ``value``
    [1, kv heads, tokens, e].

    Returns [1, tokens, heads, e]. The pool keeps keys and values max(d, e) wide.
    Without ``paged`` it is plain causal attention (used while probing a model).
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    width, wanted = max(key.shape[3], value.shape[3]), value.shape[3]
    # One function for two uses: with a probe it takes down how the layer attends and computes plainly, with a context
    # it goes through the pool.
    attention = LayerAttention(layer, KVShape(key.shape[1], width), scale, sliding_window, softcap)
    if not isinstance(paged, PagedContext):
        if paged is not None:
            paged.note(attention, module, {"attention_mask": attention_mask, **kwargs})
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=True
        )
    if key.shape[3] != value.shape[3]:  # multi-head latent attention; zeros change neither scores nor sums
        query, key, value = (F.pad(part, (0, width - part.shape[3])) for part in (query, key, value))
    output = attend(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), attention, paged)
    return output[None, ..., :wanted], None


def attend(query: Tensor, key: Tensor, value: Tensor, attention: LayerAttention, paged: PagedContext) -> Tensor:
    """Store the new keys and values, then attend: ``query`` [tokens, heads, d], ``key``/``value`` [tokens, kv heads, d]
    -> [tokens, heads, d]."""
    layer = attention.layer
    paged.cache.write(layer, key, value, paged.slot_mapping)
    heads, dim = query.shape[1:]
    kv_heads = key.shape[1]
    folded = heads // kv_heads
    outputs = []
    for group in paged.groups:
        tiles, tile = group.positions.shape
        q = query[group.start : group.stop]
        q = q.float() if paged.widened else q
        # Decode lanes on a GPU attend over the paged pool in place.
        if tile == 1 and group.visible is None and dispatch.on_gpu(q):
            pool, positions = paged.cache.layers[layer], group.positions[:, 0]
            options = (BLOCK_SIZE, attention.scaling, attention.window, attention.softcap)
            outputs.append(dispatch.paged_attention(q, pool, group.block_table, positions, *options))
            continue
        # A prefill chunk is padded at both ends to whole tiles at absolute positions.
        padding = tiles * tile - q.shape[0]
        if padding:
            q = F.pad(q, (0, 0, 0, 0, group.left_padding, padding - group.left_padding))
        # Query heads that share a key/value head become rows of one product instead of copies of K and V.
        if tile == 1:
            q = q.reshape(tiles, kv_heads, folded, dim)
        else:
            q = q.reshape(tiles, tile, kv_heads, folded, dim).permute(0, 2, 3, 1, 4)
            q = q.reshape(tiles, kv_heads, folded * tile, dim)
        # Gather the blocks into contiguous keys and values; all tiles of a chunk share one prefix.
        k, v = paged.cache.gather(layer, group.block_table)
        if k.shape[0] != tiles:
            k, v = k.expand(tiles, -1, -1, -1), v.expand(tiles, -1, -1, -1)
        mask = group.mask(folded, attention.window, q.dtype)
        o = _attend(q, k.to(q.dtype), v.to(q.dtype), mask, attention.scaling, attention.softcap).to(query.dtype)
        # Undo the folding: back to [tokens, heads, d], without the padding.
        if tile > 1:
            o = o.view(tiles, kv_heads, folded, tile, -1).permute(0, 3, 1, 2, 4)
        o = o.reshape(tiles * tile, heads, -1)
        outputs.append(o[group.left_padding : group.left_padding + group.stop - group.start] if padding else o)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, attention: LayerAttention) -> Tensor:
    """Causal attention of one sequence without a cache; shapes as in ``attend``."""
    q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling, enable_gqa=True)
    return o[0].transpose(0, 1)


AttentionInterface.register(IMPLEMENTATION, paged_attention_forward)
