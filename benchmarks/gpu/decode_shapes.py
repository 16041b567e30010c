"""Decode steps of models of given shapes under each kind of control, against plain decoding and the memory's speed.

A step is the engine's whole step. What a step must read, each linear weight once and the state of every sequence once,
at the copy bandwidth of the same run is ``floor_ms``: for all settings that of plain decoding.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ladle.benchmarks.decode import preferences
from ladle.benchmarks.engine_side import PROMPT_TOKENS, EngineSide
from ladle.benchmarks.gpu.device_timer import DeviceTimer
from ladle.benchmarks.paired import interleave, medians, ratio
from ladle.benchmarks.random_family import OBJECTIVES, randomise, write_random_family
from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import Family, load_family
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache, KVShape

STEPS = 8
_TOKENS = 16 * BLOCK_SIZE
"""Room a lane: the prompt, and what it is generated before and while it is measured."""


def settings(family: Family) -> dict[str, Callable[[int], Steering]]:
    """What is measured: steering by row of the batch. The first is plain decoding."""
    even = {name: 1 / len(OBJECTIVES) for name in OBJECTIVES}
    return {
        "plain": lambda row: Steering(method="base"),
        "16 preferences": preferences(family),
        "mage": lambda row: Steering(method="mage", preference=even, value="implicit"),
        "fusion_route": lambda row: Steering(method="fusion_route"),
    }


def run(
    shapes: Mapping[str, Mapping[str, Any]],
    batches: Sequence[int],
    rounds: int,
    timer: DeviceTimer,
    dtype: str,
    cuda_graphs: bool = True,
) -> Iterator[dict[str, object]]:
    """A row a shape, batch and setting. ``cuda_graphs``: see ``EngineConfig``."""
    bandwidth = timer.copy_bandwidth()
    for name, shape in shapes.items():
        with tempfile.TemporaryDirectory(prefix="ladle-random-") as folder:
            path = write_random_family(Path(folder) / "family", shape, getattr(torch, dtype))
            yield from _of_shape(name, load_family(path), batches, rounds, timer.device, bandwidth, dtype, cuda_graphs)
        gc.collect()  # an engine holds itself by its threads and callbacks
        if timer.device.type == "cuda":
            torch.cuda.empty_cache()


def _of_shape(
    name: str,
    family: Family,
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
    bandwidth: float,
    dtype: str,
    cuda_graphs: bool,
) -> Iterator[dict[str, object]]:
    wanted = settings(family)
    lanes = max(len(resolve(family, steering(0)).sources) for steering in wanted.values())
    token_bytes = _token_bytes(family, getattr(torch, dtype))
    options: dict[str, Any] = {"device": device.type, "max_sequences": max(batches), "max_lanes": lanes * max(batches)}
    options["cuda_graphs"] = cuda_graphs
    options["kv_memory"] = (lanes * max(batches) + 2) * _TOKENS * token_bytes
    side = EngineSide(family, dtype, max_batch_tokens=max(512, 32 * max(batches)), **options)
    try:
        if device.type == "cuda":
            randomise(side.engine)
        weight_bytes = sum(module.weight.nbytes for module in _linears(family, getattr(torch, dtype)))
        for batch in batches:
            sides = {
                setting: lambda steering=steering: side.burst(batch, STEPS, steering)  # noqa: B023
                for setting, steering in wanted.items()
            }
            times = interleave(sides, rounds)
            state_bytes = batch * (PROMPT_TOKENS + STEPS // 2) * token_bytes
            floor = (weight_bytes + state_bytes) / bandwidth
            for setting, seconds in medians(times).items():
                over_plain, quartiles = ratio(times[setting], times["plain"])
                yield {
                    "model": name,
                    "setting": setting,
                    "batch": batch,
                    "dtype": dtype,
                    "rounds": rounds,
                    "step_ms": round(1e3 * seconds, 3),
                    "over_plain": over_plain,
                    "over_plain_quartiles": quartiles,
                    "tokens_per_s": round(batch / seconds, 1),
                    "floor_ms": round(1e3 * floor, 3),
                    "share_of_copy": round(floor / seconds, 3),
                    "copy_GB_per_s": round(bandwidth / 1e9, 1),
                }
    finally:
        side.engine.shutdown()


def _linears(family: Family, dtype: torch.dtype) -> list[torch.nn.Linear]:
    """The linear layers of the family's base, the output head among them, without their values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(family.base_path, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


def _token_bytes(family: Family, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(family.base_path, local_files_only=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shapes = [KVShape(config.num_key_value_heads, head_dim)] * config.num_hidden_layers
    return KVCache.bytes_per_block(shapes, dtype) // BLOCK_SIZE
