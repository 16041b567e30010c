"""Full-weight members: complete checkpoints of the base's architecture."""

from dataclasses import dataclass
from pathlib import Path

from ladle.merging.checkpoints.architecture import Architecture, comparable, load_config
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
        reader: its tensors; the names are the base's.
    """

    name: str
    path: Path
    reader: CheckpointReader

    def numel(self) -> int:
        """Number of parameters."""
        return self.reader.numel()

    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.reader.nbytes()


def load_full(
    path: str | Path,
    name: str,
    base: CheckpointReader,
    architecture: Architecture,
    check_values: bool = True,
    headed: bool = False,
) -> FullMember:
    """Open a full checkpoint and check it against the base; dtypes may differ, nothing else may.

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
    reader = CheckpointReader(folder)
    if (folder / "config.json").is_file():
        _require_same_config(architecture, folder)
    require_same_vocabulary(base.folder, folder)
    # A tied output head may be stored or left out; either way the embedding is what counts.
    optional = set(architecture.tied)
    missing = {OUTPUT_HEAD} if headed else set()
    for tensor in base.names:
        if tensor in optional or (tensor in missing and tensor not in reader):
            continue
        if tensor not in reader:
            raise FamilyError(folder, "the base has this tensor, the member lacks it", tensor)
        if reader.shape(tensor) != base.shape(tensor):
            reason = f"shape {list(reader.shape(tensor))}, but the base has {list(base.shape(tensor))}"
            raise FamilyError(reader.file_of(tensor), reason, tensor)
        if reader.dtype(tensor).is_floating_point != base.dtype(tensor).is_floating_point:
            reason = f"dtype {reader.dtype(tensor)}, but the base has {base.dtype(tensor)}"
            raise FamilyError(reader.file_of(tensor), reason, tensor)
    for tensor in reader.names:
        if tensor not in base and tensor not in optional and not (headed and tensor == SCORE):
            raise FamilyError(reader.file_of(tensor), "the base has no such tensor", tensor)
    if check_values:
        reader.check_finite()
    return FullMember(name, folder, reader)


def _require_same_config(architecture: Architecture, folder: Path) -> None:
    theirs = comparable(load_config(folder))
    for key in sorted(architecture.config.keys() | theirs.keys()):
        ours, given = architecture.config.get(key), theirs.get(key)
        if ours != given:
            raise FamilyError(folder / "config.json", f"{key}: {given!r}, but the base has {ours!r}")
