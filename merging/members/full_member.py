"""Full-weight members: complete checkpoints of the base's architecture."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ladle.merging.checkpoints.architecture import Architecture, check_weights, comparable
from ladle.merging.checkpoints.blueprint import load_config
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.checkpoints.reader import CheckpointReader
from ladle.merging.checkpoints.vocabulary import require_same_vocabulary
from ladle.merging.errors import FamilyError
from ladle.merging.members.value_head import SCORE

OUTPUT_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class FullMember:
    """A member kept as a memory-mapped checkpoint.

    Attributes:
        name: its name in the family.
        path: the checkpoint folder.
        reader: its weights under the names that they have in the model.
    """

    name: str
    path: Path
    reader: ConvertedReader

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
    """Open a full checkpoint and check it against the base; dtypes may differ, and the names under which the weights
    are stored; nothing else may.

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
    reader = ConvertedReader(CheckpointReader(folder), architecture.blueprint.conversion)
    if (folder / "config.json").is_file():
        _require_same_config(architecture, folder)
    require_same_vocabulary(base.folder, folder)
    check_weights(architecture, reader, frozenset({OUTPUT_HEAD}) if headed else frozenset(), "the base")
    _require_same_ties(architecture, reader, headed)
    _refuse_strangers(architecture, reader, base, headed)
    if check_values:
        reader.check_finite()
    return FullMember(name, folder, reader)


def _require_same_ties(architecture: Architecture, reader: ConvertedReader, headed: bool) -> None:
    """A weight that the base ties must not have another value in the member, and one that it does not must be there."""
    for name, source in architecture.tied.items():
        if name in reader and source not in reader:
            reader.call(name, source)
        elif name in reader and not torch.equal(reader.tensor(name), reader.tensor(source)):
            reason = f"differs from {source}, but the base has one weight for both"
            raise FamilyError(reader.file_of(name), reason, name)
    for name in architecture.weights:
        if name not in reader and not (headed and name == OUTPUT_HEAD):
            raise FamilyError(reader.folder, "the base has this tensor, the member lacks it", name)


def _refuse_strangers(
    architecture: Architecture, reader: ConvertedReader, base: CheckpointReader | ConvertedReader, headed: bool
) -> None:
    """Refuse tensors that belong to no weight, but for those that the base has too or transformers leaves out."""
    known = set(base.strangers if isinstance(base, ConvertedReader) else base.names) | ({SCORE} if headed else set())
    refused = set(architecture.blueprint.report(reader.stored).unexpected)
    for tensor in sorted(set(reader.strangers) - known):
        if reader.conversion.rename(tensor)[0] in refused:
            raise FamilyError(reader.stored.file_of(tensor), "the base has no such tensor", tensor)


def _require_same_config(architecture: Architecture, folder: Path) -> None:
    theirs = comparable(load_config(folder))
    for key in sorted(architecture.config.keys() | theirs.keys()):
        ours, given = architecture.config.get(key), theirs.get(key)
        if ours != given:
            raise FamilyError(folder / "config.json", f"{key}: {given!r}, but the base has {ours!r}")
