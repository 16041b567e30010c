"""Architectures that the KV pool cannot hold are refused while loading, not at the first request."""

from pathlib import Path

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from ladle.merging.bank.bank import Bank
from ladle.merging.exceptions import FamilyError
from ladle.server.engine.forward.loaded_model import load_model


def test_attention_sinks_are_refused_with_the_reason(tmp_path: Path) -> None:
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(FamilyError, match="attention sinks") as caught:
        load_model(tmp_path, Bank([]), torch.device("cpu"), torch.float32, torch.float32)
    assert "config.json" in str(caught.value)
