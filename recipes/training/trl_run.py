"""What every training of a member by TRL has in common: its arguments, its progress, and going on where it stopped."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants as hub_constants
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.processes import processes
from ladle.recipes.training.lora import lora_config, new_adapter, save_adapter

_OURS = {
    "output_dir": "--work", "seed": "adapter.seed", "data_seed": "the table of the algorithm", "use_cpu": "--device",
    "beta": "the table of the algorithm", "learning_rate": "the table of the algorithm",
    "num_train_epochs": "the table of the algorithm", "warmup_steps": "the table of the algorithm",
    "max_grad_norm": "the table of the algorithm", "max_steps": "the table of the algorithm",
    "loss_weights": "dpo.winner_nll", "num_generations": "the table of the algorithm",
    "temperature": "the table of the algorithm", "top_p": "the table of the algorithm",
    "top_k": "the table of the algorithm", "max_completion_length": "pool.max_tokens",
    "gradient_accumulation_steps": "prompts_per_step in the table of the algorithm",
    "model_init_kwargs": "base", "reward_weights": "soup", "max_length": "pool.max_tokens",
    "trust_remote_code": "nothing: code of a model is never run", "push_to_hub": "nothing: nothing is uploaded",
}  # fmt: skip
"""Arguments of TRL that a recipe says elsewhere, and where."""


@dataclass(frozen=True)
class TrainingJob:
    """One member to be trained.

    Attributes:
        name: the member's name, for progress.
        folder: where its adapter goes; written aside first and renamed, so that it is there whole or not at all.
        base_name: what adapter_config.json calls its base.
        adapter: LoRA shape and initialisation.
    """

    name: str
    folder: Path
    base_name: str
    adapter: AdapterConfig

    @property
    def checkpoints(self) -> Path:
        """Where a training that is broken off goes on from; gone once the adapter is there."""
        return self.folder.with_name(f"{self.folder.name}.checkpoints")


def shares(per_step: int, given: Mapping[str, Any], unit: str) -> tuple[int, int]:
    """How a step of ``per_step`` rows is shared: rows a process computes at once, and how often it does.

    Args:
        per_step: rows of a step, over all processes.
        given: the recipe's [trl], which may say ``per_device_train_batch_size``.
        unit: what a row is, for the message.

    Raises:
        ValueError: the processes cannot share the rows evenly.
    """
    count = processes().num_processes
    if per_step % count:
        raise ValueError(
            f"accelerate launch: {count} processes cannot share {per_step} {unit} a step; allowed: a number of "
            f"processes that divides {per_step}"
        )
    rows = int(given.get("per_device_train_batch_size", per_step // count))
    if rows < 1 or (per_step // count) % rows:
        raise ValueError(
            f"trl.per_device_train_batch_size: {rows} is not allowed; allowed: a number that divides "
            f"{per_step // count}, the {unit} of a step that one process computes"
        )
    return rows, per_step // count // rows


def arguments(kind: type, given: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """A configuration of TRL: what the recipe's tables say, then its [trl].

    Args:
        kind: DPOConfig, GRPOConfig or RLOOConfig.
        given: [trl]: further arguments by their own names.
        own: the arguments that follow from the other tables.

    Raises:
        ValueError: an argument that there is not, one that is said elsewhere, or a value that TRL refuses.
    """
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    for name in given:
        if name not in fields:
            raise ValueError(f"trl: unknown key {name!r}; allowed: the arguments of TRL's {kind.__name__}")
        if name in _OURS:
            raise ValueError(f"trl.{name}: not allowed here; the recipe says it by {_OURS[name]}")
    defaults = {
        "lr_scheduler_type": "linear", "weight_decay": 0.0, "bf16": False, "gradient_checkpointing": False,
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "logging_nan_inf_filter": False,
        "save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2, "dataloader_pin_memory": False,
        "ddp_timeout": 7 * 24 * 3600,
    }  # fmt: skip
    try:
        return kind(**{**defaults, **own, **given})
    except (ValueError, TypeError) as error:
        raise ValueError(f"trl: {kind.__name__} refuses this: {' '.join(str(error).split())}") from error


def own_arguments(config: Any, job: TrainingJob, rows: int, repeats: int) -> dict[str, Any]:
    """The arguments that the tables of all algorithms share; ``config`` is one of these tables."""
    return {
        "output_dir": str(job.checkpoints), "seed": job.adapter.seed, "data_seed": config.seed,
        "per_device_train_batch_size": rows, "gradient_accumulation_steps": repeats,
        "learning_rate": config.learning_rate, "max_grad_norm": config.max_gradient,
        "use_cpu": processes().device.type == "cpu",
    }  # fmt: skip


def warmup_steps(config: Any, steps: int) -> int:
    """How many of the steps the learning rate rises in, at least one."""
    return max(1, round(config.warmup * steps))


def run(
    base: LoadedBase, job: TrainingJob, make: Callable[..., Any], report: Callable[[str], None]
) -> dict[str, float]:
    """Trains one member from its last whole checkpoint on, and writes its adapter. The base is left as it was.

    Args:
        base: the frozen base.
        job: the member.
        make: the trainer, given ``model``, ``processing_class``, ``peft_config`` and ``callbacks``.
        report: receives one line at the end, in the first process.

    Returns:
        means over the last quarter of the steps of all that TRL logged, by its names.
    """
    hub_constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL would tell the hub what kind of training this is
    state = processes()
    with _unchanged(base):
        factors = _initial_factors(base, job.adapter)
        tokenizer: PreTrainedTokenizerBase = deepcopy(base.tokenizer)
        tokenizer.padding_side = "left"
        progress = _Bar(job.name, shown=state.is_main_process)
        trainer = make(
            model=base.model, processing_class=tokenizer, peft_config=lora_config(job.adapter), callbacks=[progress]
        )
        _use_our_progress(trainer)
        missed = trainer.model.load_state_dict(factors, strict=False).unexpected_keys
        assert not missed, missed
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(job.checkpoints))
            figures = _late_means(trainer.state.log_history)
            if state.is_main_process:
                save_adapter(trainer.model, job.folder, job.base_name)
            state.wait_for_everyone()
        finally:
            trainer.model.unload()
    if state.is_main_process:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
        names = {"loss": "loss", "rewards/accuracies": "accuracy", "reward": "reward", "kl": "KL"}
        said = ", ".join(f"{names[key]} {value:.3f}" for key, value in figures.items() if key in names)
        report(f"{job.name}: {said}, {trainer.state.global_step} steps")
    return figures


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, as a path; None where there is none.

    ``trainer_state.json`` is what a checkpoint is closed with.
    """
    numbered = [(int(path.name.rpartition("-")[2]), path) for path in folder.glob("checkpoint-*")]
    for _, path in sorted(numbered, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)  # torn: a killed run was writing it
            continue
        return str(path)
    return None


@contextlib.contextmanager
def _unchanged(base: LoadedBase) -> Iterator[None]:
    """Puts back what trainers change of the base beside its weights: mode, device, configuration (padding, cache) and
    forward."""
    model: Any = base.model
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    before = [dict(vars(config)) for config in configs]
    device = model.device
    forward = model.__dict__.get("forward")
    try:
        yield
    finally:
        if forward is None:
            model.__dict__.pop("forward", None)  # TRL's fused output head
        else:
            model.forward = forward
        for config, values in zip(configs, before, strict=True):
            vars(config).clear()
            vars(config).update(values)
        model.to(device).eval().requires_grad_(False)


def _initial_factors(base: LoadedBase, adapter: AdapterConfig) -> dict[str, torch.Tensor]:
    """The one initialisation that all members share, by the names of PEFT's model."""
    model = new_adapter(base, adapter, "default")
    factors = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora_" in name}
    model.unload()
    return factors


def _use_our_progress(trainer: Any) -> None:
    from transformers import PrinterCallback, ProgressCallback

    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)


def _late_means(history: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last quarter of what was logged at each step."""
    rows = [row for row in history if "loss" in row]
    late = rows[-max(1, len(rows) // 4) :]
    names = [name for name, value in late[-1].items() if isinstance(value, int | float)] if late else []
    return {name: float(np.mean([row[name] for row in late if row.get(name) is not None])) for name in names}


class _Bar(TrainerCallback):
    """Shows how far a training is, and ends it where the loss is no number."""

    def __init__(self, name: str, *, shown: bool) -> None:
        self._name = name
        self._progress = Progress(disable=not shown)
        self._task = self._progress.add_task(name)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            self._progress.stop()
            raise FloatingPointError(f"{self._name}: the loss is {loss} at step {state.global_step}")
        self._progress.update(self._task, description=f"{self._name} loss {loss:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.stop()
