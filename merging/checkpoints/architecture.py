"""The shape of a base model, learned from its config alone: which modules are linear, what is tied to what."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ladle.merging.checkpoints.blueprint import Blueprint
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.checkpoints.experts import Experts, read_experts
from ladle.merging.checkpoints.quantised_reader import QuantisedReader
from ladle.merging.exceptions import FamilyError

# Keys of config.json that say nothing about shapes or arithmetic: two checkpoints that differ only here are one model.
# Ties are compared by their weights.
_NEUTRAL_KEYS = frozenset(
    {
        "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "bos_token_id",
        "eos_token_id", "pad_token_id", "sep_token_id", "output_attentions", "output_hidden_states", "return_dict",
        "initializer_range", "initializer_factor", "attn_implementation", "id2label", "label2id", "problem_type",
        "chunk_size_feed_forward", "is_encoder_decoder", "pretraining_tp", "tokenizer_class", "num_labels",
        "tie_word_embeddings", "output_router_logits", "router_aux_loss_coef", "keys_to_ignore_at_inference",
    }
)  # fmt: skip
_DROPOUT = ("dropout", "pdrop")  # in whatever words: nothing is dropped outside of training


@dataclass(frozen=True)
class Architecture:
    """What members are checked against.

    Attributes:
        config: the config as transformers normalises it, without keys that do not touch shapes or arithmetic.
        linear: (out, in) of every linear module by module path, a tied output head included.
        weights: shape of every weight by name, of tied ones the one that is stored.
        hidden: size of the last hidden state.
        tied: weight name -> the weight it shares memory with, e.g. ``lm_head.weight`` -> ``model.embed_tokens.weight``.
        embedding: name of the weight whose rows are the input embeddings.
        vocabulary: number of token ids, padding included.
        blueprint: the model without weights.
        experts: its mixtures of experts.
    """

    config: dict[str, Any]
    linear: dict[str, tuple[int, int]]
    weights: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    hidden: int
    embedding: str
    vocabulary: int
    blueprint: Blueprint = field(compare=False, repr=False)
    experts: Experts = field(default_factory=Experts, compare=False, repr=False)

    def stored_as(self, name: str) -> str:
        """The name under which a checkpoint stores the weight ``name``."""
        return self.tied.get(name, name)

    @property
    def layers(self) -> int:
        """How many decoder layers it has."""
        return int(self.blueprint.model.config.get_text_config().num_hidden_layers)

    @property
    def head(self) -> str | None:
        """Module path of the output head; None where the model has none."""
        model = self.blueprint.model
        head = model.get_output_embeddings()
        return (
            next((path for path, module in model.named_modules() if module is head), None) if head is not None else None
        )

    def module(self, path: str) -> str:
        """The linear module that an adapter calls ``path``, by its path in the model."""
        return self.blueprint.conversion.module(path)

    def untied_by(self, reader: ConvertedReader) -> set[str]:
        """The tied weights that have values of their own in the checkpoint ``reader``."""
        return {
            name
            for name, source in self.tied.items()
            if name in reader and source in reader and not torch.equal(reader.tensor(name), reader.tensor(source))
        }

    def without_ties(self, names: frozenset[str]) -> "Architecture":
        """This architecture with the tied weights ``names`` as weights of their own."""
        tied = {name: source for name, source in self.tied.items() if name not in names}
        weights = self.weights | {name: self.blueprint.conversion.weights[name] for name in names}
        return replace(self, tied=tied, weights=weights)


def read_architecture(folder: str | Path) -> Architecture:
    """Build the model of ``folder``'s config without memory and look at its modules.

    Raises:
        FamilyError: transformers does not know the config, or it needs code from the checkpoint.
    """
    blueprint = Blueprint(folder)
    file = Path(folder) / "config.json"
    model = blueprint.model
    linear = {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if type(module) is torch.nn.Linear  # a class of its own may compute something else
    }
    text = model.config.get_text_config()
    try:
        inputs = model.get_input_embeddings()
        embedding = next(f"{path}.weight" for path, module in model.named_modules() if module is inputs)
        hidden, vocabulary = text.hidden_size, inputs.num_embeddings
    except (NotImplementedError, AttributeError, StopIteration) as error:
        reason = f"this architecture cannot be served: {type(model).__name__} has no plain input embeddings"
        raise FamilyError(file, reason) from error
    # A tied weight is stored once: members may change its layer, but files and merges have it under the other name.
    tied: dict[str, str] = dict(model.all_tied_weights_keys)
    weights = {name: shape for name, shape in blueprint.conversion.weights.items() if name not in tied}
    config = comparable(blueprint.config)
    experts = read_experts(model, blueprint.conversion)
    return Architecture(config, linear, weights, tied, hidden, embedding, vocabulary, blueprint, experts)


def comparable(config: Any) -> dict[str, Any]:
    """The part of a config that decides shapes and arithmetic: keys that its class knows. Trainers and their tools
    leave keys of their own in config.json, which no model reads."""
    settings: dict[str, Any] = {}
    # Keys that the config's class does not know are read by no model; of the others those that touch nothing are left
    # out.
    fields = type(config).__dataclass_fields__.keys() | {"per_layer_config"}
    for key, value in config.to_dict().items():
        if key not in fields or key in _NEUTRAL_KEYS or key.endswith(_DROPOUT):
            continue
        # Only parts are asked for: a value that differs between the layers has no one value, and its config says so.
        part = getattr(config, key, None) if key in config.sub_configs else None
        settings[key] = comparable(part) if hasattr(part, "to_dict") else value
    if not _scales_with_length(config):
        # A limit. Where there is a table of so many positions, it has a shape that is compared.
        settings.pop("max_position_embeddings", None)
    return settings


def foreign_keys(config: Any) -> set[str]:
    """Keys of a config that its class does not know, without those that transformers writes itself."""
    ours = {"model_type", "quantization_config"} | _NEUTRAL_KEYS
    return {key for key in config.to_dict() if key not in type(config).__dataclass_fields__} - ours


def _scales_with_length(config: Any) -> bool:
    """Whether the number of positions takes part in the arithmetic of rotary frequencies."""
    rope = getattr(config, "rope_parameters", None) or {}
    types = [entry.get("rope_type") for entry in (rope, *rope.values()) if isinstance(entry, dict)]
    return any(kind not in (None, "default", "linear", "llama3") for kind in types)


def open_weights(folder: str | Path, architecture: Architecture) -> tuple[ConvertedReader, Architecture]:
    """The weights of a base, complete and of the right shapes; with them ``architecture`` as they make it.

    transformers ties two weights only where the checkpoint does not hold them both with different values, and takes
    the one that is there where it holds one of them; so does this.

    Raises:
        FamilyError: naming file and tensor: a weight is missing (it would be drawn at random), has another shape than
            the config means, or holds no floating point numbers.
    """
    blueprint = architecture.blueprint
    # Three layers of readers: files, plain weights of quantised ones, and today's names for both.
    stored = CheckpointReader(folder)
    if blueprint.quantization is not None:
        own = getattr(blueprint.config.get_text_config(), "dtype", None)
        dtype = own if isinstance(own, torch.dtype) else torch.bfloat16
        stored = QuantisedReader(folder, blueprint.quantization, dtype)
    weights = ConvertedReader(stored, blueprint.conversion)
    check_weights(architecture, weights)
    # A tie of the config holds only as far as the checkpoint agrees: two different values untie it, one value under
    # either name keeps it.
    apart = architecture.untied_by(weights)
    for name, source in architecture.tied.items():
        if name in weights and source not in weights:
            weights.call(name, source)
    return weights, architecture.without_ties(frozenset(apart)) if apart else architecture


def check_weights(
    architecture: Architecture,
    weights: ConvertedReader,
    missing: frozenset[str] = frozenset(),
    base: str = "",
) -> None:
    """Every weight of the model must be in the checkpoint, with its shape, as floating point.

    transformers' own report decides: what is missing there would be drawn at random.

    Args:
        missing: weights that need not be there.
        base: whose model it is, in words, where it is another checkpoint's.

    Raises:
        FamilyError: naming file and tensor.
    """
    report = architecture.blueprint.report(weights.stored)
    for name in report.missing:
        if name not in missing:
            reason = "the checkpoint lacks this weight of its config's model"
            raise FamilyError(weights.folder, f"{base} has this tensor, the member lacks it" if base else reason, name)
    for name, (shape, wanted) in report.mismatched.items():
        parts = weights.sources(name)
        reason = f"shape {list(shape)}, but {f'{base} has' if base else 'config.json means'} {list(wanted)}"
        if len(parts) > 1:
            reason += f" (made of {len(parts)} tensors, {parts[0]} and others)"
        raise FamilyError(weights.file_of(name), reason, name if len(parts) > 1 else parts[0])
    # Shapes agree; what is left are integers where the model has floating weights, as unread quantised layouts have
    # them.
    dtypes = architecture.blueprint.conversion.dtypes
    for name in weights.names:
        if dtypes[name].is_floating_point and not weights.dtype(name).is_floating_point:
            reason = f"dtype {weights.dtype(name)}; weights must be floating point"
            if base:
                reason = f"dtype {weights.dtype(name)}, but {base} has floating point numbers"
            raise FamilyError(weights.file_of(name), reason, weights.sources(name)[0])
