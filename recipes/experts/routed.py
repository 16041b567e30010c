"""Greedy decoding with a router and experts side by side: all of them read every token (the eager schedule)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.scoring import causal_model, output_logits

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Routed:
    """An answer's tokens (the last one ends the turn unless it was cut) and the expert chosen at each, as its row of
    the head."""

    tokens: list[int]
    experts: list[int]


@contextmanager
def speakers(base: LoadedBase, folders: Mapping[str, Path]) -> Iterator[PeftModel]:
    """The base with several PEFT adapters by name, of which `set_adapter` makes one speak; afterwards it has none."""
    from peft import PeftModel

    from ladle.merging.checkpoints.library_lock import loading

    (first, folder), *others = folders.items()
    with loading(f"reading {folder}"):
        model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=first)
    try:
        for name, path in others:
            model.load_adapter(str(path), adapter_name=name)
        yield model.eval()
    finally:
        model.unload()


def combined(
    router: torch.Tensor, experts: torch.Tensor, scores: torch.Tensor, complement: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """S = complement * lp_router + lp_expert of the expert with the greatest score (FusionRoute, arXiv 2601.05106).

    Args:
        router: float [rows, vocabulary] logits.
        experts: float [experts, rows, vocabulary] logits.
        scores: float [rows, experts].
        complement: 1 in the paper; 0 is its ablation, routing alone.

    Returns:
        (S [rows, vocabulary], chosen experts int64 [rows]).
    """
    chosen = scores.argmax(-1)
    expert = torch.log_softmax(experts[chosen, torch.arange(len(chosen))], dim=-1)
    return complement * torch.log_softmax(router, dim=-1) + expert, chosen


@torch.inference_mode()
def routed_greedy(
    model: PeftModel,
    router: str,
    experts: Sequence[str],
    head: torch.nn.Linear,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    max_tokens: int,
    complement: float,
) -> list[Routed]:
    """The most likely continuation, token by token, of each prompt.

    Args:
        model: of `speakers`.
        router, experts: names of its adapters, experts in the order of the head's rows.
        head: hidden -> experts.
        prompts: token ids, padded on the left here.
        eos: the token that ends a turn.
        complement: see `combined`.
    """
    inner = causal_model(model)
    names = (router, *experts)
    caches = {name: DynamicCache(config=inner.config) for name in names}
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[eos] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    results = [Routed([], []) for _ in prompts]
    alive = list(range(len(prompts)))
    for _ in range(max_tokens):
        states = []
        for name in names:
            model.set_adapter(name)
            inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": caches[name]}
            states.append(inner.base_model(ids, **inputs).last_hidden_state[:, -1])
        logits = [output_logits(inner, state) for state in states]
        score, chosen = combined(logits[0], torch.stack(logits[1:]), head(states[0].float()), complement)
        token = score.argmax(-1)
        for row, value, expert in zip(alive, token.tolist(), chosen.tolist(), strict=True):
            results[row].tokens.append(value)
            results[row].experts.append(expert)
        keep = (token != eos).nonzero().squeeze(-1)
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            alive = [alive[row] for row in keep.tolist()]
            for cache in caches.values():
                cache.batch_select_indices(keep)
        ids = token[keep, None]
        mask = torch.cat([mask[keep], mask.new_ones(len(keep), 1)], dim=-1)
        positions = positions[keep, -1:] + 1
    return results
