"""Which decoder layers are fused, and that the fused form is refused where it computes something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import write_tiny_base

from ladle.merging.bank.bank import Bank
from ladle.server.engine.forward.fused_layer import FusedDecoderLayer, fuse_layers
from ladle.server.engine.forward.loaded_model import load_model

FUSED = {"llama": 2, "mistral": 2, "qwen2": 2, "qwen3": 0, "gemma2": 0, "gemma3_text": 0, "phi3": 0}


def _load(folder: Path, arch: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    base = write_tiny_base(folder, arch, 5, dtype)
    return load_model(base, Bank([]), torch.device("cpu"), dtype, dtype).model


@pytest.mark.parametrize("arch", FUSED)
def test_llama_shaped_layers_are_fused_and_others_left(tmp_path: Path, arch: str) -> None:
    model = _load(tmp_path, arch)
    assert sum(isinstance(module, FusedDecoderLayer) for module in model.modules()) == FUSED[arch]


@pytest.mark.parametrize("arch", [arch for arch, count in FUSED.items() if count])
def test_fused_layer_equals_the_original(tmp_path: Path, arch: str) -> None:
    model = _load(tmp_path, arch)
    layer = next(module for module in model.modules() if isinstance(module, FusedDecoderLayer))
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    angles = torch.rand(1, 7, layer.attention.shape.head_dim // 2, dtype=torch.float64).repeat(1, 1, 2)
    embeddings = (angles.cos(), angles.sin())
    with torch.inference_mode():
        difference = layer(x, embeddings) - layer.original(x, position_embeddings=embeddings)
    assert difference.abs().max().item() < 1e-12


def test_a_layer_that_does_more_keeps_its_own_code(tmp_path: Path) -> None:
    """The right module names are not enough: a residual multiplier hides in the code."""
    model = _load(tmp_path, "llama")
    decoder = model.get_submodule("model.layers")
    fused = list(decoder)
    originals = [layer.original for layer in fused]
    plain = originals[0].forward
    originals[0].forward = lambda x, **kwargs: plain(x, **kwargs) * 1.5
    for index, original in enumerate(originals):
        decoder[index] = original  # type: ignore[operator]
    attentions = {index: layer.attention for index, layer in enumerate(fused)}
    assert fuse_layers(model, attentions, torch.float64) == 1
    assert not isinstance(next(iter(decoder)), FusedDecoderLayer)
