"""What int8 weights give and cost: decode steps against those of bfloat16 weights, and the perplexity of texts."""

from __future__ import annotations

import copy
import csv
import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ladle.benchmarks.engine_side import EngineSide
from ladle.benchmarks.paired import interleave, medians, ratio
from ladle.guidance.plan import Steering
from ladle.kernels.cpu.tiled_product import TiledProduct
from ladle.merging.family.family import Family

BURST = 12
PLAIN = Steering(method="base")
_CPU_DTYPE = "ladle.server.engine.engine_config.cpu_has_bfloat16"


def run(family: Family, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """A row a batch size: milliseconds per step with bfloat16 and with int8 weights, and the ratio paired by round.

    ``float32``: bfloat16 weights as a processor without bfloat16 instructions takes them, computed in float32.
    """
    sides = {"bfloat16": EngineSide(family, "bfloat16"), "int8": EngineSide(family, "bfloat16", quantize="int8")}
    with patch(_CPU_DTYPE, lambda: False):
        sides["float32"] = EngineSide(family, "bfloat16")
    for batch in batches:
        bursts: dict[str, Callable[[], Iterator[float]]] = {
            name: lambda side=side, batch=batch: side.burst(batch, BURST, lambda row: PLAIN)  # type: ignore[misc]
            for name, side in sides.items()
        }
        times = interleave(bursts, rounds)
        row: dict[str, object] = {"batch": batch, "rounds": rounds}
        row |= {f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in medians(times).items()}
        for name in ("bfloat16", "float32"):
            row[f"int8_over_{name}"], row[f"over_{name}_quartiles"] = ratio(times["int8"], times[name])
        yield row


def texts_of(samples: Path) -> list[str]:
    """The column ``text`` of a file of samples, as ``ladle sweep`` writes it."""
    with gzip.open(samples, "rt", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


@torch.inference_mode()
def perplexities(family: Family, texts: Sequence[str]) -> dict[str, float]:
    """Perplexity of ``texts`` under the base by how its linear layers' weights are held: float32, bfloat16, int8.

    Computed with transformers in float32, so that only the weights differ, and for int8 the products, which are those
    that are served.
    """
    tokenizer = AutoTokenizer.from_pretrained(family.base_path, local_files_only=True)
    base = AutoModelForCausalLM.from_pretrained(family.base_path, dtype=torch.float32, local_files_only=True).eval()
    forms: dict[str, Callable[[nn.Linear], None]] = {
        "float32": lambda layer: None,
        "bfloat16": _round,
        "int8": _quantise,
    }
    figures = {}
    for name, change in forms.items():
        model: Any = copy.deepcopy(base)
        # The output head apart from the embedding that it is tied to, which is held as it is.
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        for module in model.modules():
            if isinstance(module, nn.Linear):
                change(module)
        total, count = 0.0, 0
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            if ids.shape[1] < 2:
                continue
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            total -= float(scores.gather(1, ids[0, 1:, None]).sum())
            count += ids.shape[1] - 1
        figures[name] = math.exp(total / count)
    return figures


def _round(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data.bfloat16().float()


def _quantise(layer: nn.Linear) -> None:
    product = TiledProduct(layer.weight.detach(), layer.bias, None, None, torch.float32, quantized=True)

    def forward(rows: Tensor) -> Tensor:
        return product(rows.reshape(-1, rows.shape[-1]), None).view(*rows.shape[:-1], product.out_features)

    layer.forward = forward  # type: ignore[assignment, method-assign]
