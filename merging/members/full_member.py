"""Full-weight members: complete checkpoints of the base's architecture."""

from dataclasses import dataclass
from pathlib import Path

from ladle.merging.checkpoints.architecture import Architecture, check_weights, comparable, foreign_keys
from ladle.merging.checkpoints.blueprint import load_config
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader, read_json
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.checkpoints.vocabulary import require_shared_vocabulary
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.head_names import EXPECTED, HEAD_NAMES

OUTPUT_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class FullMember:
    """A member kept as a memory-mapped checkpoint.

    Attributes:
        name: its name in the family.
        path: the checkpoint folder.
        reader: its weights under the names that they have in the model.
        notes: what is there and is not used, in sentences.
    """

    name: str
    path: Path
    reader: ConvertedReader
    notes: tuple[str, ...] = ()

    def numel(self) -> int:
        """Number of parameters."""
        return self.reader.numel()

    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.reader.nbytes()


def load_full(
    path: str | Path,
    name: str,
    base: CheckpointReader | ConvertedReader,
    architecture: Architecture,
    check_values: bool = True,
    headed: bool = False,
) -> FullMember:
    """Open a full checkpoint and check it against the base. Dtypes may differ, the names under which the weights are
    stored, keys of config.json that change neither arithmetic nor shapes, and buffers that the model computes itself.

    Args:
        path: folder with safetensors and, where it has them, config.json and tokenizer.json.
        name: the member's name.
        base: the base's tensors.
        architecture: the base's architecture.
        check_values: read every value once to refuse NaN and infinity.
        headed: the checkpoint is an explicit value's: it may hold a scalar head, and lack the output head, which a
            value never asks.

    Raises:
        FamilyError: naming file and tensor: config, tokenizer, tensor names or shapes differ, NaN or infinity.
    """
    folder = Path(path)
    _require_plain(folder / "config.json")
    reader = ConvertedReader(CheckpointReader(folder), architecture.blueprint.conversion)
    notes = list(_require_same_config(architecture, folder)) if (folder / "config.json").is_file() else []
    notes += require_shared_vocabulary(base.folder, folder)
    tied = _tie(architecture, reader)
    check_weights(architecture, reader, tied | {OUTPUT_HEAD} if headed else tied, "the base")
    _require_same_ties(architecture, reader, headed)
    notes += _refuse_strangers(architecture, reader, base, headed)
    if check_values:
        reader.check_finite()
    return FullMember(name, folder, reader, tuple(notes))


def _require_plain(file: Path) -> None:
    """Raise FamilyError for a config that means quantised weights, in transformers' words or in mlx-lm's."""
    config = read_json(file) if file.is_file() else {}
    for key in ("quantization_config", "quantization"):
        if config.get(key):
            reason = f"{key}: a member's weights must be plain, not quantised; save them again in bfloat16 (dequantise)"
            raise FamilyError(file, reason)


def unties(folder: Path, architecture: Architecture) -> set[str]:
    """Weights that the base ties and the checkpoint in ``folder`` has with values of their own. Raises FamilyError for
    a checkpoint that cannot be read."""
    return architecture.untied_by(ConvertedReader(CheckpointReader(folder), architecture.blueprint.conversion))


def _tie(architecture: Architecture, reader: ConvertedReader) -> frozenset[str]:
    """Give ``reader`` the output head that the base has apart and the member ties to its embeddings; its name."""
    if OUTPUT_HEAD not in architecture.weights or OUTPUT_HEAD in reader or architecture.embedding not in reader:
        return frozenset()
    ours = (reader.folder / "config.json").is_file()
    config = load_config(reader.folder) if ours else architecture.blueprint.config
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return frozenset()
    # The member's one tensor stands for two of the base's: the embeddings, and the head that the base has apart.
    reader.share(architecture.embedding, OUTPUT_HEAD)
    return frozenset({OUTPUT_HEAD})


def _require_same_ties(architecture: Architecture, reader: ConvertedReader, headed: bool) -> None:
    """Weights that the base ties are one in the member, and those that it does not must be there."""
    for name, source in architecture.tied.items():
        if name in reader and source not in reader:
            reader.call(name, source)
    for name in architecture.weights:
        if name not in reader and not (headed and name == OUTPUT_HEAD):
            raise FamilyError(reader.folder, "the base has this tensor, the member lacks it", name)


def _refuse_strangers(
    architecture: Architecture, reader: ConvertedReader, base: CheckpointReader | ConvertedReader, headed: bool
) -> list[str]:
    """Refuse tensors that belong to no weight, but for those that the base has too, transformers leaves out or the
    model computes for itself; notes about the latter."""
    # Strangers that the base has too are no difference; what is left is either recomputed by the model, or would be
    # lost without a word.
    known = set(base.strangers if isinstance(base, ConvertedReader) else base.names)
    known |= HEAD_NAMES.keys() if headed else set()
    refused = set(architecture.blueprint.report(reader.stored).unexpected)
    left = []
    for tensor in sorted(set(reader.strangers) - known):
        name = reader.conversion.rename(tensor)[0]
        if architecture.blueprint.recomputes(name):
            left.append(tensor)
        elif name in refused:
            reason = "the base has no such tensor"
            if tensor in HEAD_NAMES:
                reason = "a scalar head; only an explicit value ([[values]]) may have one"
            elif headed:
                reason += f"; a scalar head is read from {EXPECTED}"
            raise FamilyError(reader.stored.file_of(tensor), reason, tensor)
    return [f"{reader.folder}: {left[0]} is left out: the model computes it ({len(left)} of the kind)"] if left else []


def _require_same_config(architecture: Architecture, folder: Path) -> list[str]:
    """Refuse a config that means another model; notes about keys that mean nothing and differ."""
    config, file = load_config(folder), folder / "config.json"
    if config.model_type != architecture.blueprint.config.model_type:
        ours = architecture.blueprint.config.model_type
        raise FamilyError(file, f"model_type: {config.model_type!r}, but the base has {ours!r}")
    theirs = comparable(config)
    for key in sorted(architecture.config.keys() | theirs.keys()):
        ours, given = architecture.config.get(key), theirs.get(key)
        if ours != given:
            raise FamilyError(file, f"{key}: {given!r}, but the base has {ours!r}")
    # What differs and changes no result is noted: it may still surprise whoever wrote it.
    differ = foreign_keys(config) ^ foreign_keys(architecture.blueprint.config)
    positions = [getattr(entry, "max_position_embeddings", None) for entry in (config, architecture.blueprint.config)]
    if positions[0] != positions[1]:
        differ.add("max_position_embeddings")
    return [f"{file}: differs from the base's in what changes no result: {', '.join(sorted(differ))}"] if differ else []
