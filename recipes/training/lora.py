"""A fresh LoRA adapter on the base, and how a trained one goes to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from ladle.merging.members.value_head import HEAD
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.training.written_whole import written_whole

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


def lora_config(config: AdapterConfig) -> LoraConfig:
    """PEFT's form of a recipe's adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def new_adapter(base: LoadedBase, config: AdapterConfig, name: str) -> PeftModel:
    """The base with a fresh LoRA adapter (B = 0, so it computes what the base does). Same seed, same initial A for
    every member.

    Sharing the initialisation keeps members in one linearly connected region, which merging them relies on
    (Rewarded Soups, arXiv 2306.04488).
    """
    from peft import PeftModel, get_peft_model

    torch.manual_seed(config.seed)
    model = get_peft_model(base.model, lora_config(config), adapter_name=name)
    assert isinstance(model, PeftModel)
    return model


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Sets the adapter "default" to what `save_adapter` wrote.

    Args:
        model: as `new_adapter` made it, with an adapter of the same shape.

    Raises:
        ValueError: the folder's factors are not those of the model's adapter.
    """
    from peft import set_peft_model_state_dict

    saved = load_file(str(folder / "adapter_model.safetensors"))
    factors = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = {name.removesuffix(".weight") + ".default.weight" for name in saved}
    if factors != names:
        wrong = sorted(factors ^ names)[0]
        raise ValueError(f"{folder}: {wrong} is in one of the adapter and the model, not in both")
    set_peft_model_state_dict(model, saved, adapter_name="default")


def save_adapter(
    model: PeftModel,
    folder: Path,
    base_name: str,
    head: Mapping[str, torch.Tensor] | None = None,
    head_file: str = HEAD,
) -> None:
    """Writes the adapter "default" as a PEFT folder, factors in float16 (they are rounded in the model, too).

    Args:
        model: as `new_adapter` made it.
        folder: replaced; written aside first and renamed, so that it is there whole or not at all.
        base_name: what adapter_config.json calls its base.
        head: tensors of a head, written beside the adapter in float32.
        head_file: that file's name; a value's head unless said otherwise.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    lora = model.peft_config["default"]
    lora.base_model_name_or_path = base_name
    lora.target_modules = sorted(lora.target_modules)  # PEFT keeps a set, whose order differs from run to run
    with written_whole(folder) as aside:
        # No embeddings are trained; to find that out PEFT would ask the hub for the base.
        model.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=False)
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the family has one card for all
        if head is not None:
            tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.items()}
            save_file(tensors, str(aside / head_file), metadata={"format": "pt"})
