"""Families of given shapes with random weights, for measuring speed: nothing is downloaded.

A large family's checkpoints are files of zeros that take no room on the disk; its weights are drawn where they are
used, on the device, once an engine has loaded it (``randomise``).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from ladle.merging.bank.gated_layers import GatedLinear
from ladle.server.engine.engine import Engine
from ladle.server.engine.forward.norms import FusedRMSNorm

SHAPES: dict[str, dict[str, Any]] = {
    "135M": {  # SmolLM2's
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "1.5B": {  # Qwen2.5's
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "8B": {  # Llama 3.1's
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
RANK = 16
OBJECTIVES = ("one", "two")
EXPERTS = ("first", "second", "third")
MEMBERS = (*(f"bone-{name}" for name in OBJECTIVES), *(f"value-{name}" for name in OBJECTIVES), *EXPERTS, "router")
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_IN_FULL = 1 << 24
"""Elements up to which a file's values are drawn as it is written."""


def write_random_family(folder: Path, shape: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a family with two backbones, two implicit values, three experts and a router, each a LoRA of rank ``RANK``
    on every linear layer, over a base of Llama's architecture; returns ``folder``.

    ``shape``: fields of the config.
    """
    base = folder / "base"
    base.mkdir(parents=True)
    config: Any = AutoConfig.for_model("llama", max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, **shape)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(base)
    GenerationConfig(bos_token_id=0, eos_token_id=1).save_pretrained(base)
    write_tokenizer(base, config.vocab_size)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    _write(base / "model.safetensors", shapes, dtype)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in n}
    for name in MEMBERS:
        _write_lora(folder / name, linears, dtype)
    head = torch.randn(len(EXPERTS), config.hidden_size, generator=torch.Generator().manual_seed(0))
    save_file({"weight": head}, folder / "router" / "router_head.safetensors")
    lines = [
        'name = "random"',
        f"objectives = {json.dumps(OBJECTIVES)}",
        "[base]",
        'model = "base"',
        "[soup]",
        "beta = 0.7",
    ]
    for objective in OBJECTIVES:
        lines += ["[[backbones]]", f'name = "bone-{objective}"', f'path = "bone-{objective}"']
    for objective in OBJECTIVES:
        lines += ["[[values]]", f'name = "value-{objective}"', f'path = "value-{objective}"']
        lines += ['kind = "implicit"', f'objective = "{objective}"']
    for expert in EXPERTS:
        lines += ["[[experts]]", f'name = "{expert}"', f'path = "{expert}"']
    lines += ["[router]", 'path = "router"', ""]
    (folder / "family.toml").write_text("\n".join(lines))
    return folder


@torch.inference_mode()
def randomise(engine: Engine) -> None:
    """Draw the weights of ``engine``'s models where they lie: as large as leaves the activations about as they are."""
    for loaded in engine.store.models.values():
        model: nn.Module = loaded.model
        for module in model.modules():
            if isinstance(module, GatedLinear):
                product, expand = module.group.product, module.group.expand
                if product is not None and product.plain is not None:
                    product.plain.normal_(std=1 / math.sqrt(product.plain.shape[1]))
                if expand is not None and expand.plain is not None:
                    expand.plain.normal_(std=0.1 / math.sqrt(RANK))
            elif isinstance(module, nn.Embedding):
                module.weight.normal_()
            elif isinstance(module, FusedRMSNorm):
                module.get_buffer("weight").fill_(1)
                module.get_buffer("scaled").fill_(math.sqrt(module.get_buffer("weight").shape[0]))


def _write_lora(folder: Path, linears: Mapping[str, nn.Linear], dtype: torch.dtype) -> None:
    folder.mkdir()
    targets = sorted({name.rpartition(".")[2] for name in linears})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes: dict[str, torch.Size] = {}
    for name, linear in linears.items():
        shapes[f"base_model.model.{name}.lora_A.weight"] = torch.Size((RANK, linear.in_features))
        shapes[f"base_model.model.{name}.lora_B.weight"] = torch.Size((linear.out_features, RANK))
    _write(folder / "adapter_model.safetensors", shapes, dtype)


def _write(file: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> None:
    """A safetensors file of small random values, or of zeros where that would take long."""
    if sum(shape.numel() for shape in shapes.values()) <= _IN_FULL:
        generator = torch.Generator().manual_seed(zlib.crc32(file.parent.name.encode()))
        drawn = {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}
        save_file(drawn, file, metadata={"format": "pt"})
        return
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)  # a hole: read as zeros, on disk nothing


def write_tokenizer(folder: Path, size: int) -> None:
    """``size`` tokens: two special ones, a byte each, and words without a meaning."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<begin>", "<end>", *alphabet]
    words += [f"w{index}" for index in range(size - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words[:size])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<begin>", eos_token="<end>")
    fast.save_pretrained(folder)
