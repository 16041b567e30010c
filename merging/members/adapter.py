"""Low-rank members: PEFT LoRA folders, read without PEFT and checked against the base."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ladle.merging.checkpoints.reader import read_json
from ladle.merging.errors import FamilyError
from ladle.merging.members.adapter_tensors import PREFIX, SERVE_WHOLE, Weights, read_factors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_SUFFIXES = {".lora_A.weight": "a", ".lora_B.weight": "b"}

# Options that decide what was trained or how, but not what y = W x + scale * B (A x) computes from the saved tensors.
_HARMLESS = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "lora_dropout", "bias", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
    "peft_version", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config", "loftq_config",
    "corda_config", "lora_ga_config", "runtime_config", "megatron_core", "qalora_group_size",
    # Layers saved whole: the tensors decide, which may be copies of the base's.
    "modules_to_save", "ensure_weight_tying",
}  # fmt: skip
# These start from a changed base (W - B0 A0), so the saved factors are not a delta from the base we serve.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LowRank:
    """One linear layer's delta: W + scale * b @ a.

    Attributes:
        a: ``[rank, in]``, the dtype it was saved in.
        b: ``[out, rank]``, likewise.
        scale: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense delta ``[out, in]``, computed in ``dtype``."""
        return (self.b.to(dtype) @ self.a.to(dtype)).mul_(self.scale)


@dataclass(frozen=True)
class LowRankMember:
    """A member kept as low-rank deltas.

    Attributes:
        name: its name in the family.
        path: the PEFT folder.
        modules: delta by module path in the base, e.g. ``model.layers.0.self_attn.q_proj``.
        notes: what is there and is not used, in sentences.
    """

    name: str
    path: Path
    modules: dict[str, LowRank]
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(module.rank for module in self.modules.values())

    def numel(self) -> int:
        """Number of parameters."""
        return sum(module.a.numel() + module.b.numel() for module in self.modules.values())

    def nbytes(self) -> int:
        """Bytes as saved."""
        return sum(module.a.nbytes + module.b.nbytes for module in self.modules.values())


def load_peft(
    path: str | Path,
    name: str,
    base_shapes: Mapping[str, tuple[int, int]],
    rename: Callable[[str], str] = str,
    base: Weights | None = None,
    head: str | None = None,
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

    Raises:
        FamilyError: naming file and tensor: another kind of adapter (DoRA, bias, embeddings, trained tokens, ...), a
            layer saved whole that differs from the base's, a module that the base lacks, shapes or ranks that do not
            agree, NaN or infinity.
    """
    folder = Path(path)
    config_file = folder / CONFIG
    config = read_json(config_file)
    _refuse_unsupported(config, config_file)
    weights_file = folder / WEIGHTS
    kind = "LoRA factor (MODULE.lora_A.weight or MODULE.lora_B.weight)"
    tensors = read_factors(weights_file, _SUFFIXES, kind, base)
    modules = {}
    notes = list(tensors.notes)
    for module, pair in sorted(tensors.factors.items()):
        for side, suffix in (("a", ".lora_A.weight"), ("b", ".lora_B.weight")):
            if side not in pair:
                raise FamilyError(weights_file, "missing, though its other factor is there", PREFIX + module + suffix)
        place = rename(module)
        if place not in base_shapes:
            reason = f"the base has no linear module {module}"
            raise FamilyError(weights_file, reason, f"{PREFIX}{module}.lora_A.weight")
        shape = base_shapes[place]
        if place == head and len(pair["b"]) != shape[0]:
            shared = min(len(pair["b"]), shape[0])
            notes.append(
                f"{weights_file}: {module} has {len(pair['b'])} rows and the base {shape[0]}; {shared} are used"
            )
            pair["b"] = F.pad(pair["b"][:shared], (0, 0, 0, shape[0] - shared))
        modules[place] = _low_rank(config, config_file, weights_file, module, pair["a"], pair["b"], shape)
    return LowRankMember(name, folder, modules, tuple(notes))


def is_peft_folder(path: Path) -> bool:
    """Whether ``path`` is an adapter rather than a full checkpoint."""
    return (path / CONFIG).is_file() or (path / WEIGHTS).is_file()


def _refuse_unsupported(config: Mapping[str, Any], file: Path) -> None:
    if config.get("peft_type") != "LORA":
        reason = f"peft_type: {config.get('peft_type')!r} is not supported; only 'LORA' is; {SERVE_WHOLE}"
        raise FamilyError(file, reason)
    if config.get("bias", "none") != "none":
        raise FamilyError(file, f"bias: {config['bias']!r} is not supported; only 'none' is; {SERVE_WHOLE}")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        reason = f"init_lora_weights: {init!r} changes the base; convert it to plain LoRA first"
        raise FamilyError(file, f"{reason} (path_initial_model_for_weight_conversion of PEFT's save_pretrained)")
    for key in sorted(config.keys() - _HARMLESS):
        # Whatever option PEFT has or will get: switched off it means plain LoRA, switched on we do not know it.
        if config[key] not in (None, False, [], {}, ""):
            value = sorted(config[key], key=str) if isinstance(config[key], list) else config[key]  # PEFT writes sets
            raise FamilyError(file, f"{key}: {value!r} is not supported; only plain LoRA is; {SERVE_WHOLE}")
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise FamilyError(file, f"r: {config.get('r')!r} must be a whole number >= 1")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise FamilyError(file, f"lora_alpha: {alpha!r} must be a finite number")


def _low_rank(
    config: Mapping[str, Any],
    config_file: Path,
    weights_file: Path,
    module: str,
    a: torch.Tensor,
    b: torch.Tensor,
    shape: tuple[int, int],
) -> LowRank:
    rank = _by_pattern(config, config_file, "rank_pattern", module, config["r"])
    if not isinstance(rank, int) or rank < 1:
        reason = f"rank_pattern: {rank!r} for {module} must be a whole number >= 1; a rank of 0 leaves nothing to load"
        raise FamilyError(config_file, reason)
    alpha = _by_pattern(config, config_file, "alpha_pattern", module, config["lora_alpha"])
    for label, tensor, wanted in (("lora_A", a, (rank, shape[1])), ("lora_B", b, (shape[0], rank))):
        if tuple(tensor.shape) != wanted:
            reason = (
                f"shape {list(tensor.shape)}, but {list(wanted)} follows from rank {rank} ({CONFIG}) and "
                f"the base's {shape[0]}x{shape[1]} (out x in)"
            )
            raise FamilyError(weights_file, reason, f"{PREFIX}{module}.{label}.weight")
    return LowRank(a, b, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _by_pattern(config: Mapping[str, Any], file: Path, key: str, module: str, default: float) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module path at a dot (or all of it) decides."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise FamilyError(file, f"{key}: {patterns!r} must be an object of numbers by pattern")
    for pattern, value in patterns.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise FamilyError(file, f"{key}.{pattern}: {value!r} must be a finite number")
    return patterns.get(_matching(patterns, module, file, key), default)


def _matching(patterns: Iterable[str], module: str, file: Path, key: str) -> str | None:
    for pattern in patterns:
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except re.error as error:
            raise FamilyError(file, f"{key}: {pattern!r} is not a regular expression: {error}") from None
    return None
