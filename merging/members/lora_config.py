"""``adapter_config.json`` of a LoRA: what is refused, and the rank and the scale that each module has."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ladle.merging.checkpoints.checkpoint_reader import read_json
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter_tensors import serve_whole

CONFIG = "adapter_config.json"
# Options that decide what was trained or how, but not what y = W x + scale * B (A x) computes from the saved tensors.
_HARMLESS = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "lora_dropout", "bias", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
    "peft_version", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config", "loftq_config",
    "corda_config", "lora_ga_config", "runtime_config", "megatron_core", "qalora_group_size",
    # Layers saved whole: the tensors decide, which may be copies of the base's.
    "modules_to_save", "ensure_weight_tying",
    # Likewise: a parameter's factors are told by their shapes.
    "target_parameters",
}  # fmt: skip
# These start from a changed base (W - B0 A0), so the saved factors are not a delta from the base we serve.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraSettings:
    """The settings of a LoRA that can be mixed exactly.

    Attributes:
        file: where they are read from.
        parameters: the parameters that are targeted by name (``target_parameters``), sorted.

    Raises:
        FamilyError: naming file and key: another kind of adapter, an option that changes the arithmetic.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._config = read_json(file)
        _refuse_unsupported(self._config, file)
        named = self._config.get("target_parameters") or []
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise FamilyError(file, f"target_parameters: {named!r} must be a list of names")
        self.parameters: tuple[str, ...] = tuple(sorted(named))

    def targets(self, parameter: str) -> bool:
        """Whether a parameter is targeted by name: all of its path, or the end of it from a dot on."""
        return any(parameter == name or parameter.endswith(f".{name}") for name in self.parameters)

    def key(self, module: str) -> str:
        """What patterns are matched with: the path of a module, or of its weight where that is what is targeted."""
        return f"{module}.weight" if self.targets(f"{module}.weight") else module

    def rank(self, module: str) -> int:
        """r of a module, by the path that the adapter has for it. Raises FamilyError."""
        rank = _by_pattern(self._config, self.file, "rank_pattern", module, self._config["r"])
        if not isinstance(rank, int) or rank < 1:
            reason = f"{rank!r} for {module} must be a whole number >= 1; a rank of 0 leaves nothing to load"
            raise FamilyError(self.file, f"rank_pattern: {reason}")
        return rank

    def scale(self, module: str) -> float:
        """alpha / r of a module, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732). Raises FamilyError."""
        rank = self.rank(module)
        alpha = _by_pattern(self._config, self.file, "alpha_pattern", module, self._config["lora_alpha"])
        return float(alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank)


def _refuse_unsupported(config: Mapping[str, Any], file: Path) -> None:
    if config.get("peft_type") != "LORA":
        reason = f"peft_type: {config.get('peft_type')!r} is not supported; only 'LORA' is; {serve_whole(file.parent)}"
        raise FamilyError(file, reason)
    if config.get("bias", "none") != "none":
        raise FamilyError(
            file, f"bias: {config['bias']!r} is not supported; only 'none' is; {serve_whole(file.parent)}"
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        reason = f"init_lora_weights: {init!r} changes the base; convert it to plain LoRA first"
        raise FamilyError(file, f"{reason} (path_initial_model_for_weight_conversion of PEFT's save_pretrained)")
    for key in sorted(config.keys() - _HARMLESS):
        # Whatever option PEFT has or will get: switched off it means plain LoRA, switched on we do not know it.
        if config[key] not in (None, False, [], {}, ""):
            value = sorted(config[key], key=str) if isinstance(config[key], list) else config[key]  # PEFT writes sets
            raise FamilyError(
                file, f"{key}: {value!r} is not supported; only plain LoRA is; {serve_whole(file.parent)}"
            )
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise FamilyError(file, f"r: {config.get('r')!r} must be a whole number >= 1")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise FamilyError(file, f"lora_alpha: {alpha!r} must be a finite number")


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
