"""The descent that every kind of member is trained by: AdamW, a warm-up and a decay, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from rich.progress import Progress

_T = TypeVar("_T")


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate at step 0, 1, ...: linear warm-up over `warmup * steps`, then linear decay towards
    0."""
    rising = max(1, round(warmup * steps))
    return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)


def descend(
    name: str,
    rates: Sequence[tuple[float, Sequence[torch.nn.Parameter]]],
    batches: Sequence[Sequence[_T]],
    backward: Callable[[_T, float], tuple[float, ...]],
    *,
    warmup: float,
    max_gradient: float,
) -> np.ndarray:
    """One step of AdamW (no weight decay) a batch.

    Args:
        name: what is trained, for progress and errors.
        rates: groups of parameters, each after its learning rate at the top of the schedule.
        batches: the items of each step.
        backward: adds the gradients of one item's loss, times the second argument, and returns its figures; the first
            one is the loss.
        warmup: share of the steps, see `schedule`.
        max_gradient: norm over all parameters that a step's gradient is clipped to.

    Returns:
        float64 [figures], means over the items of a step, then over the last quarter of the steps.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    parameters = [parameter for _, group in rates for parameter in group]
    groups = [{"params": list(group), "lr": rate} for rate, group in rates]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    history: list[np.ndarray] = []
    with Progress() as progress:
        task = progress.add_task(name, total=len(batches))
        for step, batch in enumerate(batches):
            factor = schedule(step, len(batches), warmup)
            for group, (rate, _) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            figures = [backward(item, 1.0 / len(batch)) for item in batch]
            torch.nn.utils.clip_grad_norm_(parameters, max_gradient)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            history.append(np.mean(figures, axis=0))
            loss = float(history[-1][0])
            if not math.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss is {loss} at step {step}")
            progress.update(task, advance=1, description=f"{name} loss {loss:.3f}")
    return np.asarray(np.mean(history[-max(1, len(history) // 4) :], axis=0), dtype=np.float64)
