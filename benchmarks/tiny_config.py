"""Configs of a few thousand parameters for architectures that transformers knows, whatever their fields are called."""

from __future__ import annotations

import inspect
from typing import Any

from ladle.benchmarks.tiny_overrides import OVERRIDES, PARTS

VOCABULARY = 320
_WIDTH, _HEADS, _LAYERS, _POSITIONS = 32, 4, 2, 128

_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "lru_width"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), _HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "mamba_n_heads"), _HEADS),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), _POSITIONS),
    **dict.fromkeys(("head_dim", "d_kv", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "mamba_d_state"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "hidden_size_per_layer_input", "state_size"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "mamba_d_head"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "rotary_dim"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("num_experts_per_tok", "mamba_expand", "expand"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("hidden_dropout", "attention_dropout"), 0.0),
    "d_inner": 2 * _WIDTH, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def tiny_config(kind: type) -> Any:
    """A small config of the class ``kind``, the configs inside it small as well. Raises whatever the class raises for
    values that it does not like."""
    from transformers import CONFIG_MAPPING

    known = set(inspect.signature(kind).parameters)
    for base in kind.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    values = {name: value for name, value in _FIELDS.items() if name in known}
    model_type = getattr(kind, "model_type", "")
    parts = dict(getattr(kind, "sub_configs", None) or {})
    parts |= {name: CONFIG_MAPPING[part] for name, part in PARTS.get(model_type, {}).items()}
    for name, part in parts.items():
        if hasattr(part, "to_dict"):
            values[name] = tiny_config(part).to_dict()
    for name, value in OVERRIDES.get(model_type, {}).items():
        values[name] = values[name] | value if isinstance(values.get(name), dict) else value
    try:
        return kind(**values)
    except Exception:  # a head size of its own is what most of them do not like
        values.pop("head_dim", None)
        return kind(**values)
