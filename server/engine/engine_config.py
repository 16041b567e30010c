"""What an operator may set about the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ladle.kernels.dispatch import can_compile, cpu_has_bfloat16
from ladle.merging.exceptions import InputError

GIB = 1 << 30
MOST_DRAFTED = 16
"""Tokens that may be drafted at once: rows of one sequence that a step computes on trial."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_QUANTISED = ("none", "int8")
_SCHEDULES = ("auto", "eager", "lazy")


@dataclass(frozen=True)
class EngineConfig:
    """Engine options; "auto" and None are resolved from the machine.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: of the weights: "auto", "float32", "bfloat16" (or "float64" for tests). Auto is bfloat16 on a GPU and
            where the processor multiplies it natively or loops can be compiled for it, else float32.
        max_sequences: sequences running at once.
        max_lanes: KV lanes at once (a traced or guided sequence has several); None: four times max_sequences.
        max_batch_tokens: token budget of one step, all lanes together.
        prefill_slowdown: how many times longer a step may take because prompts are read beside answers that are
            written; 0: as long as max_batch_tokens lets it.
        draft_tokens: how many tokens that repeat earlier text a sequence has computed ahead in a step (speculation); 0:
            none. It changes no text.
        model_draft_tokens: the same of tokens that the family's draft model guesses, where no earlier text is repeated.
        kv_memory: bytes of the KV pool.
        weights_memory: bytes of materialised weight sets kept (full-weight members).
        max_context: longest prompt plus continuation; None: what the model and the KV pool allow.
        max_queue: requests waiting before new ones are refused.
        max_queue_tokens: their prompt tokens, those of every source counted.
        quantize: "none", or "int8": on a CPU, hold the weights of linear layers in int8 with a scale per output, and
            compute in float32. Members stay as they are, so they have to be low-rank ones.
        prefix_cache: reuse KV state of equal prefixes under equal weights.
        compiled_layers: on a CPU, compute all decoder layers as one compiled call where the model allows it (bfloat16
            weights, Llama's shape).
        compiled_products: on a CPU, compute products by loops that are compiled for the processor; without them layers
            are not compiled either.
        cuda_graphs: on a GPU, record decode steps of some sizes at the start, and run these; costs memory for the
            results of every size.
        tensor_parallel: processes that share the models, each with a part of every layer: on a GPU of its own, or on a
            share of the processor's cores. Memory options count for each of them.
        reproducible: on a CPU, a request's tokens depend on the request alone in bfloat16 too, not on what shares its
            batch or on what the prefix cache holds. Takes the forms of a step that keep to that
            (docs/reproducibility.md).
        expert_schedule: when the experts of a routed request compute their tokens. "eager": with every token. "lazy":
            what they missed, once the router chooses them. "auto": lazy where an expert would take a forward of its own
            in every step, eager where it is some more rows of one that is computed anyway.
    """

    device: str = "auto"
    dtype: str = "auto"
    max_sequences: int = 64
    max_lanes: int | None = None
    max_batch_tokens: int = 512
    prefill_slowdown: float = 3.0
    draft_tokens: int = 0
    model_draft_tokens: int = 0
    kv_memory: int = GIB
    weights_memory: int = 4 * GIB
    max_context: int | None = None
    max_queue: int = 256
    max_queue_tokens: int = 1 << 20
    quantize: str = "none"
    prefix_cache: bool = True
    compiled_layers: bool = True
    compiled_products: bool = True
    cuda_graphs: bool = True
    tensor_parallel: int = 1
    reproducible: bool = False
    expert_schedule: str = "auto"

    def __post_init__(self) -> None:
        for name in (
            "max_sequences",
            "max_batch_tokens",
            "kv_memory",
            "weights_memory",
            "max_queue",
            "max_queue_tokens",
            "tensor_parallel",
        ):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "a number >= 1")
        if not (self.prefill_slowdown == 0 or 1 < self.prefill_slowdown < math.inf):
            raise InputError("prefill_slowdown", self.prefill_slowdown, "0, or a number above 1")
        for name in ("draft_tokens", "model_draft_tokens"):
            if not 0 <= getattr(self, name) <= MOST_DRAFTED:
                raise InputError(name, getattr(self, name), f"0 to {MOST_DRAFTED}")
        for name in ("max_lanes", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, value, "a number >= 1")
        if self.quantize not in _QUANTISED:
            raise InputError("quantize", self.quantize, ", ".join(_QUANTISED))
        if self.quantize != "none" and self.tensor_parallel > 1:
            raise InputError("quantize", self.quantize, reason="a divided product (tensor_parallel) is not quantised")
        if self.quantize != "none" and not self.compiled_products:
            raise InputError("quantize", self.quantize, reason="quantised products are compiled ones")
        if self.reproducible and self.tensor_parallel > 1:
            raise InputError("reproducible", True, reason="sums over processes (tensor_parallel) were not tried")
        if self.expert_schedule not in _SCHEDULES:
            raise InputError("expert_schedule", self.expert_schedule, ", ".join(_SCHEDULES))
        if self.dtype != "auto" and self.dtype not in _DTYPES:
            raise InputError("dtype", self.dtype, "auto, float32 or bfloat16")

    def resolve_device(self) -> torch.device:
        """The device to run on. Raises InputError when the asked one is not there."""
        only_here = self.reproducible or self.quantize != "none"
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() and not only_here else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise InputError("device", self.device, "auto, cpu, cuda or cuda:N") from None
        if device.type not in ("cpu", "cuda"):
            raise InputError("device", self.device, "auto, cpu, cuda or cuda:N")
        if device.type == "cuda" and self.reproducible:
            raise InputError("reproducible", True, reason="no GPU was tried yet; device cpu has it")
        if device.type == "cuda" and self.quantize != "none":
            raise InputError("quantize", self.quantize, reason="a GPU has no quantised products; device cpu has int8")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise InputError("device", self.device, f"cpu ({torch.cuda.device_count()} CUDA devices are visible)")
        return device

    def resolve_dtypes(self, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
        """(weights, activations). A CPU without bfloat16 instructions computes bfloat16 weights in float32."""
        native = device.type == "cuda" or cpu_has_bfloat16()
        quick = native or can_compile()
        weights = (torch.bfloat16 if quick else torch.float32) if self.dtype == "auto" else _DTYPES[self.dtype]
        widened = not native or self.quantize != "none"  # int8 is multiplied with float32
        activations = torch.float32 if weights == torch.bfloat16 and widened else weights
        return weights, activations

    def resolve_kv_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype of keys and values: that of the activations, but for int8 weights, whose activations are float32
        for the sake of the products alone. What a processor attends to in bfloat16 is kept so."""
        weights, activations = self.resolve_dtypes(device)
        return weights if self.quantize != "none" and cpu_has_bfloat16() else activations

    @property
    def drafted(self) -> str:
        """What is drafted, in one word: tokens that are repeated, and where a model guesses, its own."""
        return f"{self.draft_tokens}+{self.model_draft_tokens}" if self.model_draft_tokens else f"{self.draft_tokens}"

    @property
    def lanes(self) -> int:
        return self.max_lanes or 4 * self.max_sequences
