"""A PBLoRA on the base (PARM, arXiv 2505.06274): a LoRA whose change of the weights is linear in the preference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from ladle.merging.members.adapter import CONFIG, WEIGHTS
from ladle.merging.members.adapter_tensors import PREFIX
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import ConditionedConfig
from ladle.recipes.training.written_whole import written_whole


class PreferenceFactors(torch.nn.Module):
    """dW(mu) = s (B1 W1 A1 + B2 W2(mu) A2) of one linear module, W2(mu) = reshape(mu^T M, [r2, r2]), s = alpha / r2.

    W1 and M start at 0, so that the module starts as the base's; A and B start as the authors' code has them, uniform
    within 1 / sqrt(columns).

    Attributes:
        pblora_A: A1 over A2, [r1 + r2, in].
        pblora_B: B1 beside B2, [out, r1 + r2].
        pblora_W1: [r1, r1].
        pblora_W2: M, [objectives, r2 * r2].
    """

    def __init__(self, inner: int, out: int, objectives: int, config: ConditionedConfig) -> None:
        super().__init__()
        r1, r2 = config.fixed_rank, config.rank
        self.ranks, self.scale = (r1, r2), config.alpha / r2
        self.pblora_A = torch.nn.Parameter(torch.empty(r1 + r2, inner).uniform_(-1, 1) / math.sqrt(inner))
        self.pblora_B = torch.nn.Parameter(torch.empty(out, r1 + r2).uniform_(-1, 1) / math.sqrt(r1 + r2))
        self.pblora_W1 = torch.nn.Parameter(torch.zeros(r1, r1))
        self.pblora_W2 = torch.nn.Parameter(torch.zeros(objectives, r2 * r2))

    def forward(self, inputs: torch.Tensor, preference: torch.Tensor) -> torch.Tensor:
        """dW(mu) x.

        Args:
            inputs: float [..., in].
            preference: mu, float [objectives].

        Returns:
            float [..., out].
        """
        r1, r2 = self.ranks
        fixed, steered = (inputs @ self.pblora_A.T).split([r1, r2], dim=-1)
        mixing = (preference @ self.pblora_W2).view(r2, r2)
        mixed = torch.cat([fixed @ self.pblora_W1.T, steered @ mixing.T], dim=-1)
        return self.scale * (mixed @ self.pblora_B.T)


class PBLoraModel(torch.nn.Module):
    """The factors of every target of a base, and the preference that they are read at.

    Attributes:
        preference: mu, float32 [objectives].
        factors: by the module's path in the base, in the order of its modules.
    """

    def __init__(self, base: LoadedBase, objectives: int, config: ConditionedConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self._objectives, self._config = objectives, config
        self.preference = torch.full((objectives,), 1.0 / objectives)
        self.factors = {
            path: PreferenceFactors(module.in_features, module.out_features, objectives, config)
            for path, module in base.model.named_modules()
            if isinstance(module, torch.nn.Linear) and path.rpartition(".")[2] in config.targets
        }
        if not self.factors:
            raise ValueError(f"conditioned.targets: {list(config.targets)!r} is not allowed; the base has none of them")
        self._held = torch.nn.ModuleList(self.factors.values())
        self.to(base.model.device)

    def mixing(self) -> list[torch.nn.Parameter]:
        """W1 and M of every module."""
        return [part for one in self.factors.values() for part in (one.pblora_W1, one.pblora_W2)]

    def outer(self) -> list[torch.nn.Parameter]:
        """A and B of every module."""
        return [part for one in self.factors.values() for part in (one.pblora_A, one.pblora_B)]

    @contextmanager
    def on(self, base: LoadedBase) -> Iterator[None]:
        """Within it, the base computes with dW(preference) added to its weights."""
        modules = dict(base.model.named_modules())

        def adding(factors: PreferenceFactors) -> object:
            def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
                return output + factors(inputs[0], self.preference.to(output.device))

            return hook

        hooks = [modules[path].register_forward_hook(adding(one)) for path, one in self.factors.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def save(self, folder: Path, base_name: str) -> None:
        """Writes a folder as the authors' PEFT fork does, factors in float16; it is there whole or not at all."""
        tensors = {
            f"{PREFIX}{path}.{name}": parameter.detach().half().cpu().contiguous()
            for path, one in self.factors.items()
            for name, parameter in one.named_parameters()
        }
        config = {
            "base_model_name_or_path": base_name,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": self._config.alpha,
            "lora_dropout": 0.0,
            "obj_num": self._objectives,
            "peft_type": "PBLORA",
            "r1": self._config.fixed_rank,
            "r2": self._config.rank,
            "target_modules": sorted(self._config.targets),
            "task_type": "CAUSAL_LM",
        }
        with written_whole(folder) as aside:
            aside.mkdir()
            save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
            (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def at(model: PBLoraModel, preference: Sequence[float]) -> PBLoraModel:
    """``model``, read at a preference, [objectives]."""
    model.preference = torch.tensor(list(preference), dtype=torch.float32)
    return model
