"""Decoder layers of Llama's shape as one function: fewer calls between the same products.

At small batches half of a step goes into the calls between the products. A layer is swapped only where its modules are
those of the shape (norm, q/k/v/o, norm, gate/up/down) and the fused form gives the same on random input, so a layer
with anything more to it keeps transformers' own code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ladle.merging.bank.gated_layers import GatedLinear
from ladle.server.engine.forward.attention import LayerAttention, PagedContext, attend, plain_attention
from ladle.server.engine.forward.norms import FusedRMSNorm

_PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


class FusedDecoderLayer(nn.Module):
    """Stands for ``original``, whose products, norms and activation it calls."""

    def __init__(self, original: Any, attention: LayerAttention) -> None:
        super().__init__()
        self.original = original
        self.attention_type = getattr(original, "attention_type", None)
        self.attention = attention
        self.norms = (original.input_layernorm, original.post_attention_layernorm)
        attn, mlp = original.self_attn, original.mlp
        self.qkv = attn.q_proj.group
        self.out = attn.o_proj.group
        self.gate_up = mlp.gate_proj.group
        self.down = mlp.down_proj.group
        self.groups = (self.qkv, self.out, self.gate_up, self.down)
        self.act = mlp.act_fn
        self.inner = mlp.gate_proj.out_features
        self.hidden = attn.q_proj.in_features
        self.attended = attn.o_proj.in_features
        self.heads = attn.q_proj.out_features // attention.shape.head_dim
        self.rotated = self.heads + attention.shape.heads

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        paged: PagedContext | None = None,
        **ignored: Any,
    ) -> Tensor:
        """``hidden_states`` [1, tokens, hidden] -> the same shape."""
        x = hidden_states[0]
        tokens, dim = x.shape[0], self.attention.shape.head_dim
        # Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)); q, k and v are one product, gate and up
        # another.
        qkv = self.qkv.forward(self.norms[0](x))
        rotated_width = self.rotated * dim
        # Queries and keys lie side by side in the fused product, so one rotary embedding turns both.
        turned = _rotate(qkv[:, :rotated_width].view(tokens, self.rotated, dim), *rotary(position_embeddings, paged))
        query, key = turned[:, : self.heads], turned[:, self.heads :]
        value = qkv[:, rotated_width:].view(tokens, -1, dim)
        if paged is None:
            attended = plain_attention(query, key, value, self.attention)
        else:
            attended = attend(query, key, value, self.attention, paged)
        x = x + self.out.forward(attended.reshape(tokens, -1))
        both = self.gate_up.forward(self.norms[1](x))
        x = x + self.down.forward(self.act(both[:, : self.inner]) * both[:, self.inner :])
        return x[None]


def rotary(embeddings: tuple[Tensor, Tensor], paged: PagedContext | None) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with their first half negated, [tokens, 1, d]; made once a forward."""
    if paged is not None and paged.rotary is not None and paged.rotary[0] is embeddings[0]:
        return paged.rotary[1]
    cos, sin = (part[0].unsqueeze(1) for part in embeddings)
    # rotate_half(x) = (-x2, x1) is a roll by half a head with the first half negated; the sign moves into the sines, so
    # that a step saves a concatenation per layer.
    half = sin.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    if paged is not None:
        paged.rotary = (embeddings[0], (cos, signed))
    return cos, signed


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding of ``x`` [tokens, heads, d]: x cos + rotate_half(x) sin, bit for bit."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * signed_sin


def _has_the_shape(layer: nn.Module) -> bool:
    for path, names in _PARTS.items():
        # Exactly the children that are known: one more, such as a norm of the queries, would be left out of the fused
        # form.
        part = layer.get_submodule(path) if path == "" or hasattr(layer, path) else None
        if part is None or {name for name, _ in part.named_children()} != names:
            return False
    attn: Any = layer.self_attn
    mlp: Any = layer.mlp
    joined = [[attn.q_proj, attn.k_proj, attn.v_proj], [attn.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
    # Equal names are not enough: q, k and v have to be one group in this order, so that slices of its product are
    # theirs.
    return all(
        isinstance(linear, GatedLinear)
        and linear.group is group[0].group
        and linear.position == position
        and len(linear.group.outputs) == len(group)
        for group in joined
        for position, linear in enumerate(group)
    ) and all(isinstance(norm, FusedRMSNorm) for norm in (layer.input_layernorm, layer.post_attention_layernorm))


def _rotary_size(model: Any) -> int | None:
    """How many numbers of a head the model's position embeddings turn; None where it does not say."""
    rotary = getattr(model.get_decoder() if hasattr(model, "get_decoder") else model, "rotary_emb", None)
    if not isinstance(rotary, nn.Module):
        return None
    position_ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    try:
        cos = rotary(torch.zeros(1, 1, 1, device=model.device), position_ids)[0]
    except (TypeError, RuntimeError, AttributeError, KeyError):
        return None
    return int(cos.shape[-1]) if isinstance(cos, Tensor) else None


@torch.inference_mode()
def fuse_layers(model: Any, attentions: dict[int, LayerAttention], dtype: torch.dtype) -> int:
    """Swap the decoder layers of ``model`` that the fused form can stand for; returns how many."""
    layers = getattr(model.get_decoder() if hasattr(model, "get_decoder") else model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return 0
    swapped = 0
    turned = _rotary_size(model)
    for index, layer in enumerate(layers):
        attention = attentions[index]
        if not _has_the_shape(layer) or attention.softcap is not None:
            continue
        if turned not in (None, attention.shape.head_dim):
            continue  # only a part of each head is turned
        fused = FusedDecoderLayer(layer, attention)
        generator = torch.Generator().manual_seed(index)
        # Trust no name: the fused layer replaces one whose output it matches on random input.
        x = torch.randn(1, 3, fused.hidden, generator=generator).to(model.device, dtype)
        angles = torch.rand(1, 3, attention.shape.head_dim // 2, generator=generator).repeat(1, 1, 2).to(x)
        embeddings = (angles.cos(), angles.sin())
        try:
            expected = layer(x, position_embeddings=embeddings)
            same = torch.allclose(
                fused(x, embeddings), expected, rtol=1e-3, atol=1e-3 if dtype != torch.bfloat16 else 0.1
            )
        except (TypeError, RuntimeError):
            same = False
        if same:
            layers[index] = fused
            swapped += 1
    return swapped
