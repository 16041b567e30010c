"""Low-rank members: PEFT LoRA folders, read without PEFT and checked against the base."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from ladle.merging.checkpoints.experts import Experts
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter_tensors import PREFIX, Weights, read_factors, serve_whole
from ladle.merging.members.expert_factors import ExpertFactors
from ladle.merging.members.lora_config import CONFIG, LoraSettings
from ladle.merging.members.low_rank import LowRank, LowRankMember

WEIGHTS = "adapter_model.safetensors"
_SUFFIXES = {".lora_A.weight": "a", ".lora_B.weight": "b"}


def load_peft(
    path: str | Path,
    name: str,
    base_shapes: Mapping[str, tuple[int, int]],
    rename: Callable[[str], str] = str,
    base: Weights | None = None,
    head: str | None = None,
    experts: Experts | None = None,
) -> LowRankMember:
    """Load a PEFT LoRA folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        path: the folder.
        name: the member's name.
        base_shapes: (out, in) of every linear module of the base, by module path.
        rename: gives the path in the base of the module that the adapter calls so.
        base: the base's weights, to compare copies in the adapter's file with; see ``read_factors``.
        head: module path of the base's output head, whose rows are tokens: an adapter that was trained after the
            embeddings were resized may have other rows than the base has.
        experts: the base's mixtures of experts, where it has such.

    Raises:
        FamilyError: naming file and tensor: another kind of adapter (DoRA, bias, embeddings, trained tokens, ...), a
            layer saved whole that differs from the base's, a module that the base lacks, shapes or ranks that do not
            agree, NaN or infinity.
    """
    folder = Path(path)
    settings = LoraSettings(folder / CONFIG)
    weights_file = folder / WEIGHTS
    kind = "LoRA factor (MODULE.lora_A.weight or MODULE.lora_B.weight)"
    tensors = read_factors(weights_file, _SUFFIXES, kind, base)
    mixtures = ExpertFactors(experts or Experts(), settings, weights_file)
    shapes = {**base_shapes, **mixtures.routers}
    modules = {}
    notes = list(tensors.notes)
    for module, pair in sorted(tensors.factors.items()):
        for side, suffix in (("a", ".lora_A.weight"), ("b", ".lora_B.weight")):
            if side not in pair:
                raise FamilyError(weights_file, "missing, though its other factor is there", PREFIX + module + suffix)
        if mixtures.take(module, pair["a"], pair["b"]):
            continue
        place = rename(module)
        if place not in shapes:
            reason = f"the base has no linear module {module}"
            if experts is not None and experts.holds(place):
                reason += f": what is there computes in a way of its own; {serve_whole(folder)}"
            raise FamilyError(weights_file, reason, f"{PREFIX}{module}.lora_A.weight")
        shape = shapes[place]
        # Rows of the head are tokens: those that the base lacks are cut off, and those that the adapter lacks get a
        # delta of zero.
        if place == head and len(pair["b"]) != shape[0]:
            shared = min(len(pair["b"]), shape[0])
            notes.append(
                f"{weights_file}: {module} has {len(pair['b'])} rows and the base {shape[0]}; {shared} are used"
            )
            pair["b"] = F.pad(pair["b"][:shared], (0, 0, 0, shape[0] - shared))
        modules[place] = _low_rank(settings, weights_file, module, pair["a"], pair["b"], shape)
    return LowRankMember(name, folder, modules | mixtures.joined(), tuple(notes))


def is_peft_folder(path: Path) -> bool:
    """Whether ``path`` is an adapter rather than a full checkpoint."""
    return (path / CONFIG).is_file() or (path / WEIGHTS).is_file()


def _low_rank(
    settings: LoraSettings, file: Path, module: str, a: torch.Tensor, b: torch.Tensor, shape: tuple[int, int]
) -> LowRank:
    key = settings.key(module)
    rank = settings.rank(key)
    for label, tensor, wanted in (("lora_A", a, (rank, shape[1])), ("lora_B", b, (shape[0], rank))):
        if tuple(tensor.shape) != wanted:
            reason = (
                f"shape {list(tensor.shape)}, but {list(wanted)} follows from rank {rank} ({CONFIG}) and "
                f"the base's {shape[0]}x{shape[1]} (out x in)"
            )
            raise FamilyError(file, reason, f"{PREFIX}{module}.{label}.weight")
    return LowRank(a, b, settings.scale(key))
