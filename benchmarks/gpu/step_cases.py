"""What follows the model in a step, as cases of ``ladle.benchmarks.gpu.ops``: scores, routing, draws, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ladle.benchmarks.gpu.case import OpCase
from ladle.benchmarks.gpu.device_timer import nbytes
from ladle.kernels import dispatch
from ladle.kernels.reference import operations as reference
from ladle.kernels.reference import route_tokens as routing
from ladle.kernels.reference import step as step_reference
from ladle.kernels.step_tables import StepTables, plain_tables

SOURCES = 3
EXPERTS = 8


def step_cases(
    device: torch.device, dtype: torch.dtype, vocabularies: tuple[int, ...], batches: tuple[int, ...]
) -> Iterator[OpCase]:
    """Every op at every vocabulary and batch, with ``SOURCES`` sources a sequence."""
    generator = torch.Generator(device=device).manual_seed(0)
    for vocabulary in vocabularies:
        for batch in batches:
            logits = 4 * torch.randn(batch * SOURCES, vocabulary, generator=generator, device=device)
            yield from _of_size(logits.to(dtype), batch)
    for batch in batches:
        yield _route(torch.randn(batch, EXPERTS, generator=generator, device=device))


def _of_size(logits: Tensor, batch: int) -> Iterator[OpCase]:
    device, vocabulary, dtype = logits.device, logits.shape[1], logits.dtype
    source_rows = torch.arange(batch * SOURCES, device=device).view(batch, SOURCES)
    weights = torch.tensor([[1.0, 0.7, -0.7]] * batch, device=device)
    size = f"{batch} x {vocabulary}, {SOURCES} sources"
    yield OpCase(
        "combine_logits",
        size,
        dtype,
        nbytes(logits) + 4 * batch * vocabulary,
        lambda: dispatch.combine_logits(logits, source_rows, weights),
        lambda: reference.combine_logits(logits, source_rows, weights),
    )
    scores = reference.combine_logits(logits, source_rows, weights)
    keys = torch.arange(2 * batch, dtype=torch.int32, device=device).view(batch, 2)

    def options(top_p: float) -> tuple[Tensor, ...]:
        one, none = torch.ones(batch, device=device), torch.zeros(batch, device=device)
        return one, none.long(), one * top_p, none, keys

    for name, top_p in (("all tokens", 1.0), ("top-p 0.9", 0.9)):
        chosen = options(top_p)
        yield OpCase(
            "sample",
            f"{batch} x {vocabulary}, {name}",
            torch.float32,
            nbytes(scores),
            partial(dispatch.sample, scores, *chosen),
            partial(reference.sample, scores, *chosen),
        )
    for name, tables in _tables(source_rows, weights, keys):
        yield OpCase(
            "fused_step",
            f"{size}, {name}",
            dtype,
            nbytes(logits),
            partial(dispatch.fused_step, logits, tables),
            partial(step_reference.fused_step, logits, tables),
        )


def _tables(source_rows: Tensor, weights: Tensor, keys: Tensor) -> Iterator[tuple[str, StepTables]]:
    plain = plain_tables(source_rows, weights)
    yield "greedy", plain
    drawn = plain.changed(temperature=1.0, key_0=keys[:, 0], key_1=keys[:, 1])
    yield "all tokens", drawn
    yield "top-p 0.9", replace(drawn.changed(top_p=0.9), truncates=True)
    # Every second sequence greedy, every third with alternatives: as a batch of many people's requests is.
    place = torch.arange(len(source_rows), device=source_rows.device)
    mixed = drawn.changed(
        temperature=(place % 2).float(), top_p=0.9, top_k=50, wanted=torch.where(place % 3 == 0, 5, 0)
    )
    yield "mixed", replace(mixed, truncates=True, wanted=5)


def _route(scores: Tensor) -> OpCase:
    batch = len(scores)
    previous = torch.zeros(batch, dtype=torch.int64, device=scores.device)
    history = (previous, previous + 1, previous + 2)
    return OpCase(
        "route_tokens",
        f"{batch} x {EXPERTS} experts",
        scores.dtype,
        nbytes(scores, *history, previous),
        partial(dispatch.route_tokens, scores, *history),
        partial(routing.route_tokens, scores, *history),
    )
