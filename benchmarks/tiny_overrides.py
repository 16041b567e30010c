"""What small configs of some architectures need beyond the common fields, by model_type."""

from __future__ import annotations

from typing import Any

_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {"num_key_value_heads": 4}
"""Multi-head latent attention has as many keys as queries; they are 16 wide, its values 8."""
_SMALL_PATCHES = {"image_size": 32, "patch_size": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_ENCODERS = ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
             "rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl")  # fmt: skip

OVERRIDES: dict[str, dict[str, Any]] = {
    **{kind: {"is_decoder": True} for kind in _ENCODERS},
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": {**_LATENT, **_HYBRID, "first_k_dense_replace": 1},
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": None,
                    "topk_group": None},
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_audio_encoder": {"feature_size": 8, "downsample_hidden_size": 8, "adapter_input_size": 32,
                                 "adapter_out_dim": 32},
    "dots3_note_text": _LATENT,
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 32, "adapter_out_dim": 32},
    "emu3": {"vocabulary_map": {"<image>": 5}},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "codebook_size": 16,
                   "attn_resolutions": []},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma4_assistant": {"text_config": {"vocab_size_per_layer_input": 0, "hidden_size_per_layer_input": 0}},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 2}},
    "gemma4_unified_vision": {"mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32, "patch_size": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_HYBRID, "shared_intermediate_size": 48, "mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_LATENT, **_HYBRID, "linear_head_dim": 8, "linear_num_heads": 4, "q_lora_rank": None,
                    "mlp_layer_types": ["dense", "sparse"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "llama4_vision_model": {**_SMALL_PATCHES, "vision_output_dim": 32, "projector_input_dim": 32,
                            "projector_output_dim": 32, "intermediate_size": 128},
    "longcat_flash": {**_LATENT, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2,
                      "zero_expert_num": 2},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "minicpm3": _LATENT,
    "phi4_multimodal": {"rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0}},
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "qwen4_exp_text": {"layer_types": ["linear_attention", "indexed_attention"], "hc_lowrank": 8,
                       "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
                       "indexer_compress_ratio": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "attention_head_size": 8, "axial_pos_shape": [8, 16],
                 "axial_pos_embds_dim": [16, 16], "feed_forward_size": 48, "local_attn_chunk_length": 8,
                 "lsh_attn_chunk_length": 8, "attn_layers": ["local", "local"]},
    "roc_bert": {"is_decoder": True, "pronunciation_embed_dim": 16, "pronunciation_vocab_size": 32,
                 "shape_embed_dim": 16, "shape_vocab_size": 32},
    "siglip_vision_model": _SMALL_PATCHES,
    "xlm": {"emb_dim": 32, "causal": True},
    "xlstm": {"num_blocks": 2, "chunk_size": 16, "ffn_round_up_to_multiple_of": 16},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    # transformers zeroes the embedding of its padding after every load.
    "youtu": {**_LATENT, "initializer_range": 0.02, "embedding_initializer_range": 0.02, "pad_token_id": None},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
              "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip
"""model_type to fields, which replace the common ones; the fields of a part replace those of that part."""

PARTS: dict[str, dict[str, str]] = {
    "fuyu": {"text_config": "persimmon"},
    "gemma3": {"vision_config": "siglip_vision_model"},
    "gemma4_assistant": {"text_config": "gemma4_text"},
    "gemma4_unified_assistant": {"text_config": "gemma4_unified_text"},
    "got_ocr2": {"text_config": "qwen2"},
    "moss_transcribe_diarize": {"text_config": "qwen3"},
}
"""model_type to the model_types of those parts that its config class leaves open."""
