"""Compiled code that a server will need, begun before torch is imported."""

from __future__ import annotations

from pathlib import Path

from ladle.kernels.ahead import await_all, compile_ahead, compiling

__all__ = ["await_all", "begin_code", "compiling"]

_DRIVER = Path("/proc/driver/nvidia/version")


def begin_code(
    device: str, dtype: str, quantize: str, compiled_layers: bool, processes: int, gently: bool = False
) -> bool:
    """Have loops compiled in processes of their own where an engine with these settings, as ``EngineConfig`` has them,
    is likely to run them; returns whether it was begun. A wrong guess costs time alone. ``gently``: see
    ``compile_ahead``."""
    # The engine's own decision needs torch, which is not imported yet: the driver's file stands for a GPU.
    on_cpu = device == "cpu" or (device == "auto" and (quantize != "none" or not _DRIVER.exists()))
    if not on_cpu or dtype == "float32" or not compiled_layers or processes > 1:
        return False
    return compile_ahead(quantize == "int8", gently)
