"""PBLoRA folders: one adapter conditioned on the whole preference (PARM, arXiv 2505.06274).

dW(mu) = s (B1 W1 A1 + B2 W2(mu) A2), W2(mu) = reshape(mu^T M, [r2, r2]), s = lora_alpha / r2; the file format is the
one of the authors' PEFT fork (Baijiong-Lin/PARM, ``peft/tuners/pblora``): ``pblora_A`` [r1 + r2, in] holds A1 over A2,
``pblora_B`` [out, r1 + r2] holds B1 beside B2, ``pblora_W1`` is [r1, r1] and ``pblora_W2`` [objectives, r2 * r2] is M.

W2 is linear in the preference, so dW(mu) = D0 + sum_i mu_i D_i with D0 = s B1 W1 A1 and D_i = s B2 reshape(M_i) A2: a
fixed member at coefficient 1 and one member per objective at coefficient mu_i (our reading, exact). So a row of
coefficients says a preference, as it does for any other members, and one batch mixes preferences freely.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.merging.checkpoints.checkpoint_reader import read_json
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import CONFIG, WEIGHTS, LowRank, LowRankMember
from ladle.merging.members.adapter_tensors import PREFIX, read_factors

_PARTS = {".pblora_A": "A", ".pblora_B": "B", ".pblora_W1": "W1", ".pblora_W2": "W2"}

# What a config may say besides; of these only the sizes and lora_alpha decide what the saved tensors compute. The
# preference that was current when the adapter was saved (pref_vec_init) gives way to the request's.
_HARMLESS = {
    "peft_type", "task_type", "r1", "r2", "obj_num", "lora_alpha", "pref_vec_init", "target_modules", "lora_dropout",
    "bias", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "layers_to_transform", "layers_pattern", "exclude_modules",
}  # fmt: skip


@dataclass(frozen=True)
class PBLora:
    """A PBLoRA as members of a bank.

    Attributes:
        fixed: D0 under the value's name; coefficient 1.
        rows: (objective, D_i under ``NAME@objective``) in the order of M's rows; coefficient mu_i.
        rank: r1 + r2, the rank of dW.
        parameters: number of parameters as saved.
        size: bytes as saved.
    """

    fixed: LowRankMember
    rows: tuple[tuple[str, LowRankMember], ...]
    rank: int
    parameters: int
    size: int

    def numel(self) -> int:
        """Number of parameters as saved."""
        return self.parameters

    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.size


def is_pblora_folder(path: Path) -> bool:
    """Whether ``path`` holds a PBLoRA."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("peft_type") == "PBLORA"


def load_pblora(
    path: str | Path,
    name: str,
    objectives: Sequence[str],
    base_shapes: Mapping[str, tuple[int, int]],
    rename: Callable[[str], str] = str,
) -> PBLora:
    """Load a PBLoRA folder.

    Products of factors are kept in float64, so that only the bank rounds.

    Args:
        path: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: the value's name.
        objectives: what each row of M was trained on. The folder does not say.
        base_shapes: (out, in) of every linear module of the model, by module path.
        rename: gives the path in the model of the module that the folder calls so.

    Raises:
        FamilyError: naming file and tensor: an option that is not supported, another number of objectives, a module
            that the model lacks, shapes or ranks that do not agree, NaN or infinity.
    """
    folder = Path(path)
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    config = read_json(config_file)
    r1, r2, count, scale = _sizes(config, config_file)
    if count != len(objectives):
        reason = f"obj_num: {count} objectives, but {len(objectives)} are expected: {', '.join(objectives) or 'none'}"
        raise FamilyError(config_file, reason)
    modules = read_factors(weights_file, _PARTS, "PBLoRA factor (MODULE.pblora_A, _B, _W1 or _W2)").factors
    fixed: dict[str, LowRank] = {}
    rows: list[dict[str, LowRank]] = [{} for _ in objectives]
    for module, parts in sorted(modules.items()):
        stem = f"{PREFIX}{module}"
        place = rename(module)
        if place not in base_shapes:
            tensor = f"{stem}.pblora_{sorted(parts)[0]}"
            raise FamilyError(weights_file, f"the base has no linear module {module}", tensor)
        out, inner = base_shapes[place]
        wanted = {"A": (r1 + r2, inner), "B": (out, r1 + r2), "W1": (r1, r1), "W2": (count, r2 * r2)}
        for part, shape in wanted.items():
            if part not in parts:
                raise FamilyError(weights_file, "missing, though other factors are there", f"{stem}.pblora_{part}")
            if tuple(parts[part].shape) != shape:
                reason = (
                    f"shape {list(parts[part].shape)}, but {list(shape)} follows from r1 {r1}, r2 {r2} and obj_num "
                    f"{count} ({CONFIG}) and the base's {out}x{inner} (out x in)"
                )
                raise FamilyError(weights_file, reason, f"{stem}.pblora_{part}")
        # dW(mu) in parts that are linear in mu: the fixed half gets W1 folded into its B; of the other half, each
        # objective gets its own row of M, reshaped, folded into B2.
        a, b, w1, w2 = (parts[part].double() for part in ("A", "B", "W1", "W2"))
        fixed[place] = LowRank(a[:r1], b[:, :r1] @ w1, scale)
        for row, mixing in zip(rows, w2, strict=True):
            row[place] = LowRank(a[r1:], b[:, r1:] @ mixing.view(r2, r2), scale)
    tensors = [tensor for parts in modules.values() for tensor in parts.values()]
    return PBLora(
        fixed=LowRankMember(name, folder, fixed),
        rows=tuple(
            (objective, LowRankMember(f"{name}@{objective}", folder, row))
            for objective, row in zip(objectives, rows, strict=True)
        ),
        rank=r1 + r2,
        parameters=sum(tensor.numel() for tensor in tensors),
        size=sum(tensor.nbytes for tensor in tensors),
    )


def _sizes(config: Mapping[str, Any], file: Path) -> tuple[int, int, int, float]:
    """r1, r2, number of objectives, scale. Raises FamilyError for any option whose meaning is not the one above."""
    if config.get("bias", "none") != "none":
        raise FamilyError(file, f"bias: {config['bias']!r} is not supported; only 'none' is")
    for key in sorted(config.keys() - _HARMLESS):
        if config[key] not in (None, False, [], {}, ""):
            raise FamilyError(file, f"{key}: {config[key]!r} is not supported in a PBLoRA")
    sizes = []
    for key in ("r1", "r2", "obj_num"):
        size = config.get(key)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise FamilyError(file, f"{key}: {size!r} must be a whole number >= 1")
        sizes.append(size)
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise FamilyError(file, f"lora_alpha: {alpha!r} must be a finite number")
    return sizes[0], sizes[1], sizes[2], alpha / sizes[1]
