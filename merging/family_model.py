"""One model of a family with the members that were grown from it: the base, or a further model beside it."""

from dataclasses import dataclass, field
from pathlib import Path

from ladle.merging.adapter import LowRankMember
from ladle.merging.architecture import Architecture
from ladle.merging.checkpoint import CheckpointReader
from ladle.merging.full_member import FullMember


@dataclass(frozen=True)
class FamilyModel:
    """A model whose tensors were read.

    Attributes:
        name: "" for the family's base, else its name in ``[[models]]``.
        base_path: folder of its safetensors and config.
        base_revision: identity of its plain weights, hex (see ``base_identity``).
        base: its tensors, memory-mapped.
        architecture: its linear modules and ties.
        low_rank: low-rank members of it by name, in manifest order.
        full: full-weight members by name.
    """

    name: str
    base_path: Path
    base_revision: str
    base: CheckpointReader
    architecture: Architecture
    low_rank: dict[str, LowRankMember] = field(default_factory=dict)
    full: dict[str, FullMember] = field(default_factory=dict)
