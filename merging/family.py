"""A family in memory: manifest, base, members, all checked against each other."""

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ladle.merging.adapter import LowRankMember, is_peft_folder, load_peft
from ladle.merging.architecture import Architecture, check_base, read_architecture
from ladle.merging.base import Progress, resolve_base
from ladle.merging.checkpoint import CheckpointReader
from ladle.merging.errors import FamilyError
from ladle.merging.full_member import FullMember, load_full
from ladle.merging.manifest import MANIFEST_NAME, Manifest, load_manifest
from ladle.merging.vocabulary import require_same_vocabulary

# Kinds whose weights are served today; entries of other kinds are validated in the manifest but not loaded.
SERVED_KINDS = ("backbone", "policy")
_SAMPLE = 4096  # bytes hashed at the start, the middle and the end of every tensor


@dataclass(frozen=True)
class MemberInfo:
    """One row of ``GET /v1/families`` and of ``ladle check``.

    Attributes:
        rank: largest rank of its modules; None for a full checkpoint.
        parameters: number of parameters as saved.
        bytes: bytes as saved.
    """

    name: str
    kind: str
    storage: str
    rank: int | None
    parameters: int
    bytes: int
    objective: str | None
    rewards: tuple[float, ...] | None


@dataclass(frozen=True)
class Family:
    """A family whose base and members were read and agree.

    Attributes:
        manifest: the validated family.toml.
        root: the folder of family.toml.
        base_path: folder of the base's safetensors, config and tokenizer.
        base_revision: identity of the base's weights, hex (see ``base_identity``).
        base: the base's tensors, memory-mapped.
        architecture: the base's linear modules and ties.
        objectives: names, in order.
        matrix: B, float64 ``[n, n]``, row j the reward weights of backbone j; None where the manifest has none.
        low_rank: low-rank members by name.
        full: full-weight members by name.
        kinds: kind by name of every loaded member.
        backbones: names of the backbones in manifest order, which is the order of B's rows.
        singles: objective -> single-objective policy.
    """

    manifest: Manifest
    root: Path
    base_path: Path
    base_revision: str
    base: CheckpointReader
    architecture: Architecture
    objectives: tuple[str, ...]
    matrix: NDArray[np.float64] | None
    low_rank: dict[str, LowRankMember] = field(default_factory=dict)
    full: dict[str, FullMember] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    singles: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def extrapolation(self) -> dict[str, float]:
        """k_i by objective, as the manifest gives them."""
        return dict(self.manifest.soup.extrapolation) if self.manifest.soup else {}

    @property
    def mergeable(self) -> tuple[str, ...]:
        """Names of the members that may take part in a merge, in manifest order."""
        return tuple(self.kinds)

    def members(self) -> list[MemberInfo]:
        """What is loaded, in manifest order."""
        rows = []
        for kind, entry in self.manifest.members():
            if entry.name not in self.kinds:
                continue
            low = self.low_rank.get(entry.name)
            member: LowRankMember | FullMember = low if low is not None else self.full[entry.name]
            rewards = getattr(entry, "rewards", None)
            if kind == "backbone" and rewards is None and self.matrix is not None:
                rewards = self.matrix[self.backbones.index(entry.name)].tolist()
            rows.append(
                MemberInfo(
                    name=entry.name,
                    kind=kind,
                    storage="low-rank" if low is not None else "full",
                    rank=low.rank if low is not None else None,
                    parameters=member.numel(),
                    bytes=member.nbytes(),
                    objective=getattr(entry, "objective", None),
                    rewards=tuple(rewards) if rewards is not None else None,
                )
            )
        return rows


def load_family(
    name_or_path: str | Path, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> Family:
    """Load a family and check all of it.

    Args:
        name_or_path: a built-in name such as ``demo``, a folder with ``family.toml``, or that file.
        cache_dir: where a converted base is kept (see ``resolve_base``).
        progress: called with one line before anything that takes long.

    Raises:
        FamilyError: naming file, tensor or key, and reason.
    """
    file = find_manifest(name_or_path)
    manifest = load_manifest(file)
    root = file.parent
    base_path = resolve_base(manifest.base.model, cache_dir, progress, root)
    base = CheckpointReader(base_path)
    architecture = read_architecture(base_path)
    check_base(architecture, base)
    low_rank: dict[str, LowRankMember] = {}
    full: dict[str, FullMember] = {}
    kinds: dict[str, str] = {}
    for kind, entry in manifest.members():
        path = root / entry.path
        if not path.is_dir():
            raise FamilyError(file, f"{kind} {entry.name!r}: no such folder {path}")
        if kind not in SERVED_KINDS:
            continue
        if progress:
            progress(f"reading {kind} {entry.name}")
        if is_peft_folder(path):
            low_rank[entry.name] = load_peft(path, entry.name, architecture.linear)
            require_same_vocabulary(base_path, path)
        else:
            full[entry.name] = load_full(path, entry.name, base, architecture)
        kinds[entry.name] = kind
    return Family(
        manifest=manifest,
        root=root,
        base_path=base_path,
        base_revision=base_identity(base),
        base=base,
        architecture=architecture,
        objectives=tuple(manifest.objectives),
        matrix=manifest.matrix(),
        low_rank=low_rank,
        full=full,
        kinds=kinds,
        backbones=tuple(entry.name for entry in manifest.backbones),
        singles={entry.objective: entry.name for entry in manifest.policies},
    )


def find_manifest(name_or_path: str | Path) -> Path:
    """The family.toml that a name or a path means. Raises FamilyError listing the built-in names."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return (path / MANIFEST_NAME).resolve()
        # A folder that happens to be called like a built-in family does not hide it.
        if str(name_or_path) not in built_in_families():
            raise FamilyError(path / MANIFEST_NAME, "no such file; a family is a folder with a family.toml")
    if str(name_or_path) in (built_in := built_in_families()):
        return built_in[str(name_or_path)]
    known = ", ".join(sorted(built_in)) or "none"
    raise FamilyError(path, f"neither a folder with a {MANIFEST_NAME} nor a built-in family; built in: {known}")


def built_in_families() -> dict[str, Path]:
    """family.toml by name of the families that come with the package."""
    folder = resources.files("ladle.families")
    return {
        entry.name: Path(str(entry)) / MANIFEST_NAME
        for entry in folder.iterdir()
        if entry.is_dir() and (entry / MANIFEST_NAME).is_file()
    }


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
