"""The processes of one training run: one, or as many as ``accelerate launch`` started."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState

_PATIENCE = timedelta(days=7)  # one process samples the pool and trains values while the others wait


def processes(device: str = "cpu") -> PartialState:
    """This process among the others, which are joined on the first call.

    Args:
        device: "cpu" or "cuda"; under ``accelerate launch`` each process has a GPU of its own.
    """
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=_PATIENCE)


def default_device() -> str:
    """A GPU of CUDA where there is one and ``accelerate launch --cpu`` has not turned it off, else the CPU."""
    turned_off = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return "cuda" if torch.cuda.is_available() and not turned_off else "cpu"


def on_main(work: Callable[[], None]) -> None:
    """Do it in the first process while the others wait. A failure there ends the others with it, as their launcher ends
    all of them."""
    state = processes()
    if state.is_main_process:
        work()
    state.wait_for_everyone()
