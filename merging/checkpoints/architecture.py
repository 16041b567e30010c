"""The shape of a base model, learned from its config alone: which modules are linear, what is tied to what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ladle.merging.checkpoints.reader import CheckpointReader, read_json
from ladle.merging.errors import FamilyError

# Keys of config.json that say nothing about shapes or arithmetic: two checkpoints that differ only here are one model.
_NEUTRAL_KEYS = frozenset(
    {
        "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "bos_token_id",
        "eos_token_id", "pad_token_id", "output_attentions", "output_hidden_states", "return_dict", "initializer_range",
        "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_implementation", "id2label",
        "label2id", "problem_type", "chunk_size_feed_forward", "is_encoder_decoder", "pretraining_tp",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """What members are checked against.

    Attributes:
        config: the config as transformers normalises it, without keys that do not touch shapes or arithmetic.
        linear: (out, in) of every linear module by module path, a tied output head included.
        weights: shape of every weight by name, of tied ones the one that is stored. Stacked weights (of experts inside
            a layer) are left out, because checkpoints store them one by one.
        hidden: size of the last hidden state.
        tied: weight name -> the weight it shares memory with, e.g. ``lm_head.weight`` -> ``model.embed_tokens.weight``.
        embedding: name of the weight whose rows are the input embeddings.
        vocabulary: number of token ids, padding included.
    """

    config: dict[str, Any]
    linear: dict[str, tuple[int, int]]
    weights: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    hidden: int
    embedding: str
    vocabulary: int

    def stored_as(self, name: str) -> str:
        """The name under which a checkpoint stores the weight ``name``."""
        return self.tied.get(name, name)


def read_architecture(folder: str | Path) -> Architecture:
    """Build the model of ``folder``'s config without memory and look at its modules.

    Raises:
        FamilyError: transformers does not know the config, or it needs code from the checkpoint.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    if getattr(config, "quantization_config", None):
        raise FamilyError(Path(folder) / "config.json", "quantization_config: the base must be plain, not quantised")
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, ImportError) as error:
        raise FamilyError(Path(folder) / "config.json", f"no causal language model: {error}") from error
    linear = {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    text = model.config.get_text_config()
    paths = {id(module): path for path, module in model.named_modules()}
    head, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    embedding = f"{paths[id(inputs)]}.weight"
    tied = {f"{paths[id(head)]}.weight": embedding} if text.tie_word_embeddings else {}
    weights = {
        name: tuple(weight.shape)
        for name, weight in model.named_parameters(remove_duplicate=False)
        if name not in tied and weight.ndim <= 2
    }
    return Architecture(comparable(config), linear, weights, tied, text.hidden_size, embedding, inputs.num_embeddings)


def load_config(folder: str | Path) -> Any:
    """The transformers config of ``folder``. Raises FamilyError naming config.json."""
    from transformers import AutoConfig

    file = Path(folder) / "config.json"
    read_json(file)  # a clear message for a missing or malformed file
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # config classes validate in their own ways
        raise FamilyError(file, f"transformers does not accept it: {error}") from error


def comparable(config: Any) -> dict[str, Any]:
    """The part of a config that decides shapes and arithmetic."""
    return {key: value for key, value in config.to_dict().items() if key not in _NEUTRAL_KEYS}


def check_base(architecture: Architecture, reader: CheckpointReader) -> None:
    """Every weight must be in the checkpoint under its name in the model, with its shape, as floating point: what is
    missing would be drawn at random, and what is no number of that kind would be taken for one.

    Raises:
        FamilyError: naming file and tensor.
    """
    for name, shape in architecture.weights.items():
        if name not in reader:
            raise FamilyError(reader.folder, "the checkpoint lacks this weight of its config's model", name)
        if reader.shape(name) != shape:
            reason = f"shape {list(reader.shape(name))}, but config.json means {list(shape)}"
            raise FamilyError(reader.file_of(name), reason, name)
        if not reader.dtype(name).is_floating_point:
            reason = f"dtype {reader.dtype(name)}; weights must be floating point"
            raise FamilyError(reader.file_of(name), reason, name)
