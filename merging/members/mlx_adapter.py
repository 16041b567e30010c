"""Low-rank members as mlx-lm saves them: ``adapter_config.json`` and ``adapters.safetensors``."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ladle.merging.checkpoints.checkpoint_reader import read_json, require_finite
from ladle.merging.checkpoints.tensor_file import read_tensors
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import CONFIG, LowRank, LowRankMember

MLX_WEIGHTS = "adapters.safetensors"
_SUFFIXES = {".lora_a": "a", ".lora_b": "b"}


def is_mlx_folder(path: Path) -> bool:
    """Whether ``path`` holds an adapter of mlx-lm."""
    return (path / MLX_WEIGHTS).is_file() and (path / CONFIG).is_file() and "peft_type" not in read_json(path / CONFIG)


def load_mlx(
    path: str | Path,
    name: str,
    base_shapes: Mapping[str, tuple[int, int]],
    rename: Callable[[str], str] = str,
) -> LowRankMember:
    """Load a LoRA of mlx-lm: y = W x + scale * lora_b^T (lora_a^T x), lora_a ``[in, r]``, lora_b ``[r, out]``.

    Args:
        path: the folder.
        name: the member's name.
        base_shapes: (out, in) of every linear module of the base, by module path.
        rename: gives the path in the base of the module that the adapter calls so.

    Raises:
        FamilyError: naming file and tensor: another kind of training (DoRA, full), a tensor that is no factor of a
            linear module of the base, shapes that do not agree, NaN or infinity.
    """
    folder = Path(path)
    config_file, file = folder / CONFIG, folder / MLX_WEIGHTS
    config = read_json(config_file)
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise FamilyError(config_file, f"fine_tune_type: {kind!r} is not supported; only 'lora' is")
    scale = (config.get("lora_parameters") or {}).get("scale")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise FamilyError(config_file, f"lora_parameters.scale: {scale!r} must be a finite number")
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for tensor_name, tensor in sorted(read_tensors(file).items()):
        suffix = next((suffix for suffix in _SUFFIXES if tensor_name.endswith(suffix)), None)
        if suffix is None or tensor.ndim != 2 or not tensor.is_floating_point():
            shapes = f"{tensor.dtype} of shape {list(tensor.shape)}"
            reason = f"{shapes}; only matrices MODULE.lora_a and MODULE.lora_b are read"
            raise FamilyError(file, reason, tensor_name)
        # Transposed here: mlx-lm multiplies from the left, with factors [in, r] and [r, out].
        require_finite(tensor, file, tensor_name)
        factors.setdefault(tensor_name.removesuffix(suffix), {})[_SUFFIXES[suffix]] = tensor.T.contiguous()
    modules = {}
    for module, pair in factors.items():
        place = rename(module)
        if pair.keys() != {"a", "b"}:
            missing = ".lora_b" if "a" in pair else ".lora_a"
            raise FamilyError(file, "missing, though its other factor is there", module + missing)
        if place not in base_shapes:
            raise FamilyError(file, f"the base has no linear module {module}", f"{module}.lora_a")
        out, inner = base_shapes[place]
        a, b = pair["a"], pair["b"]
        if a.shape[1] != inner or b.shape[0] != out or a.shape[0] != b.shape[1] or not len(a):
            shapes = f"shapes {list(a.T.shape)} and {list(b.T.shape)}"
            reason = f"{shapes} are no factors of the base's {out}x{inner} (out x in)"
            raise FamilyError(file, reason, f"{module}.lora_a")
        modules[place] = LowRank(a, b, float(scale))
    if not modules:
        raise FamilyError(file, "holds not one factor of a LoRA")
    return LowRankMember(name, folder, modules)
