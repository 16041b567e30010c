"""Models divided among several threads give what they give as a whole, merged as the rows of a batch say."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from thread_exchange import ThreadExchange, in_threads
from tiny_models import ARCHITECTURES, write_family, write_tiny_base
from torch import nn
from transformers import AutoModelForCausalLM

from ladle.merging.bank import gated_layers as gated
from ladle.merging.bank.bank import Bank
from ladle.merging.bank.tensor_parallel import STYLES, Shard, split_linears
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family


def load(family: Family) -> Any:
    # Not on several threads: a model that is not float32 is made by changing what torch makes by default.
    return AutoModelForCausalLM.from_pretrained(family.base_path, dtype=torch.float64).eval()


def logits(
    model: Any, family: Family, ids: torch.Tensor, rows: torch.Tensor | None, exchange: ThreadExchange | None
) -> tuple[torch.Tensor, int]:
    """(logits, bytes of gated products) of ``model``, which is gated, divided or whole."""
    splits = {} if exchange is None else split_linears(model, exchange)
    gate = gated.install(model, Bank(list(family.low_rank.values())), torch.float64, exact=True, splits=splits)
    gate.open(rows)
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits, gated.nbytes(model)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parts_give_what_the_whole_gives(arch: str, tmp_path: Path) -> None:
    seed = fresh_seed()
    size = random.Random(seed).choice([2, 4])
    generator = torch.Generator().manual_seed(seed)
    family = load_family(write_family(tmp_path, arch, seed % 1000, num_key_value_heads=4, tie=bool(seed % 2)))
    ids = torch.randint(3, 300, (1, 9), generator=generator)
    members = torch.rand(9, len(family.low_rank), generator=generator, dtype=torch.float64) * 2 - 0.5
    wholes = []
    for rows in (members, None):
        whole, bytes_of_whole = logits(load(family), family, ids, rows, None)
        wholes.append(whole)
        models = [load(family) for _ in range(size)]
        found = in_threads(size, lambda x, rows=rows, models=models: logits(models[x.rank], family, ids, rows, x))
        for part, bytes_of_part in found:
            torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-9)
            # Factors are smaller than what they change; the side of them that is not divided is there for all.
            assert bytes_of_part < 0.8 * bytes_of_whole
    assert not torch.allclose(*wholes)


@pytest.mark.parametrize("style", STYLES)
def test_a_bias_counts_once(style: str) -> None:
    torch.manual_seed(fresh_seed())
    whole = nn.Linear(8, 12, dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = whole(x)

    class Model(nn.Module):
        tp_plan = {"layers.*.proj": style}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(8, 12, dtype=torch.float64)})])
            self.layers[0]["proj"].load_state_dict(whole.state_dict())
            self.config = type("Config", (), {"get_text_config": lambda self: object()})()

    def run(exchange: ThreadExchange) -> torch.Tensor:
        model = Model()
        (split,) = split_linears(model, exchange).values()
        own = x[:, split.share(8)] if style == "rowwise" else x
        return model.layers[0]["proj"](own)

    parts = in_threads(4, run)
    found = torch.cat(parts, dim=-1) if style == "colwise" else parts[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "plan", "words"),
    [
        (4, {}, "a divisor of 2, the key/value heads"),
        (3, {}, "a divisor of 4, the attention heads"),
        (2, {"model.layers.*.mlp": "moe_tp_experts"}, "the plan of LlamaForCausalLM has moe_tp_experts"),
        (2, None, "LlamaForCausalLM has no plan"),
    ],
)
def test_what_cannot_be_divided_is_refused(size: int, plan: Any, words: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny_base(tmp_path)).eval()
    model._tp_plan = {} if plan is None else {**model.tp_plan, **plan}
    exchange = ThreadExchange(0, [torch.empty(0)] * size, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tensor_parallel") as refused:
        split_linears(model, exchange)
    assert words in str(refused.value) and str(size) in str(refused.value)


def test_sizes_that_do_not_come_out_even_are_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny_base(tmp_path, intermediate_size=63)).eval()
    with pytest.raises(InputError, match=r"a divisor of 63, the size of model\.layers\.0\.mlp\."):
        split_linears(model, ThreadExchange(0, [torch.empty(0)] * 2, None))  # type: ignore[arg-type]


def test_a_part_of_the_factors_is_of_the_layers_it_belongs_to() -> None:
    """Stacked layers are divided one by one, not as one tall one."""
    torch.manual_seed(fresh_seed())
    outputs, rank = [8, 4, 4], 3
    stacked = torch.zeros(16, 9)
    blocks, start = [], 0
    for index, rows in enumerate(outputs):
        stacked[start : start + rows, 3 * index : 3 * index + rank] = torch.randn(rows, rank)
        blocks.append((start, start + rows, 3 * index, 3 * index + rank))
        start += rows
    from ladle.merging.bank.bank import StackedFactors

    factors = StackedFactors(torch.randn(9, 10), stacked, torch.arange(9), tuple(blocks))
    parts = [
        Shard("colwise", ThreadExchange(rank, [torch.empty(0)] * 2, None)).factors(factors, outputs)  # type: ignore[arg-type]
        for rank in range(2)
    ]
    assert [part.blocks for part in parts] == [((0, 4, 0, 3), (4, 6, 3, 6), (6, 8, 6, 9))] * 2
    for (first, last, *_), (start, _, *_) in zip(parts[0].blocks, blocks, strict=True):
        for rank, part in enumerate(parts):
            own = stacked[start + rank * (last - first) : start + (rank + 1) * (last - first)]
            assert torch.equal(part.expand[first:last], own) and torch.equal(part.shrink, factors.shrink)
    rowwise = Shard("rowwise", ThreadExchange(1, [torch.empty(0)] * 2, None)).factors(factors, outputs)  # type: ignore[arg-type]
    assert torch.equal(rowwise.shrink, factors.shrink[:, 5:]) and rowwise.blocks == factors.blocks
