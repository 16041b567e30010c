"""One model of a family with the members that were grown from it: the base, or a further model beside it."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ladle.merging.checkpoints.architecture import Architecture, open_weights, read_architecture
from ladle.merging.checkpoints.base_checkpoint import Progress, resolve_base
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.checkpoints.vocabulary import TOKENIZER, largest_id, require_same_vocabulary
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import CONFIG, LowRankMember
from ladle.merging.members.full_member import FullMember
from ladle.merging.members.steering_vector import SteeringVector

_SAMPLE = 4096  # bytes hashed at the start, the middle and the end of every tensor


@dataclass(frozen=True)
class FamilyModel:
    """A model whose tensors were read.

    Attributes:
        name: "" for the family's base, else its name in ``[[models]]``.
        base_path: folder of its safetensors and config.
        base_revision: identity of its plain weights, hex (see ``base_identity``).
        base: its weights, memory-mapped, under the names that they have in the model.
        architecture: its linear modules and ties.
        spec: what the manifest calls it.
        low_rank: low-rank members of it by name, in manifest order.
        full: full-weight members by name.
        vectors: steering vectors by name, in manifest order.
    """

    name: str
    base_path: Path
    base_revision: str
    base: ConvertedReader
    architecture: Architecture
    spec: str = ""
    low_rank: dict[str, LowRankMember] = field(default_factory=dict)
    full: dict[str, FullMember] = field(default_factory=dict)
    vectors: dict[str, SteeringVector] = field(default_factory=dict)

    def untied(self, names: frozenset[str]) -> "FamilyModel":
        """This model with the tied weights ``names`` as weights of their own, of equal values in the base."""
        for name in names:
            self.base.share(self.architecture.tied[name], name)
        return replace(self, architecture=self.architecture.without_ties(names))

    def weight(self, name: str) -> torch.Tensor | None:
        """The weight ``name``, of a tied one what is stored for it; None where there is none."""
        stored = self.architecture.stored_as(name)
        return self.base.tensor(stored) if stored in self.base else None


def open_model(
    name: str, spec: str, root: Path, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> FamilyModel:
    """The model that ``spec`` means (see ``resolve_base``), without members.

    Every value is read once: a NaN would otherwise be found by whoever asks first, and an engine reads them all anyway.

    Raises:
        FamilyError: there is no such model, its checkpoint does not fit its config, NaN or infinity.
    """
    folder = resolve_base(spec, cache_dir, progress, root)
    if (folder / CONFIG).is_file():
        reason = "an adapter lies beside the base, and transformers would load both; move one of them elsewhere"
        raise FamilyError(folder / CONFIG, reason)
    base, architecture = open_weights(folder, read_architecture(folder))
    base.check_finite()
    return FamilyModel(name, folder, base_identity(base.stored.as_stored), base, architecture, spec)


def require_same_tokens(base: FamilyModel, other: FamilyModel, tokenizer: str | None = None) -> None:
    """Scores of both models can be added up: same tokenizer, and ``other`` knows every token of it that the base does.

    A manifest's ``tokenizer = "base"`` says so of a model that comes without one; one that is there is compared all the
    same. Sizes may differ by padding; what is beyond the smaller one is never a token (methods F3).

    Raises:
        FamilyError: naming the file, and the tensor of a vocabulary that is too small.
    """
    for folder in (base.base_path, other.base_path):
        if folder == other.base_path and tokenizer == "base":
            continue
        if not (folder / TOKENIZER).is_file():
            reason = f"no such file; it must be there to compare the tokens of model {other.name!r} with the base's"
            if folder == other.base_path:
                reason += '; if they are the same, say tokenizer = "base" in [[models]]'
            raise FamilyError(folder / TOKENIZER, reason)
    require_same_vocabulary(base.base_path, other.base_path)
    # Rows of padding count on neither side: what must be there is every id of the tokenizer that the base has a row
    # for.
    needed = min(largest_id(base.base_path / TOKENIZER) + 1, base.architecture.vocabulary)
    if other.architecture.vocabulary < needed:
        reason = f"model {other.name!r} has {other.architecture.vocabulary} rows for the tokenizer's {needed} tokens"
        raise FamilyError(other.base_path, reason, other.architecture.embedding)


def base_identity(base: CheckpointReader) -> str:
    """sha256 (hex) over config.json and, for every tensor, name, dtype, shape and three samples of its bytes.

    Sampled rather than complete: hashing everything would read every byte of a large base at each start (about 10 s
    for 15 GB), while training moves nearly every value of a tensor, so start, middle and end of each one tell two
    bases apart.
    """
    hasher = hashlib.sha256()
    config = base.folder / "config.json"
    hasher.update(config.read_bytes() if config.is_file() else b"")
    for name in base.names:
        tensor = base.tensor(name).contiguous().flatten()
        hasher.update(f"{name} {base.dtype(name)} {base.shape(name)}".encode())
        step = max(1, _SAMPLE // tensor.element_size())
        middle = max(0, tensor.numel() // 2 - step // 2)
        for start in (0, middle, max(0, tensor.numel() - step)):
            piece = tensor[start : start + step]
            hasher.update(piece.view(torch.uint8).numpy().tobytes() if piece.numel() else b"")
    return hasher.hexdigest()
