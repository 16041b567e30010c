"""Batched sampling that stops paying for rows once they have ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel


def draw(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Draws one token a row.

    Args:
        logits: float32 [rows, vocabulary].
        temperature: > 0.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this.
        generator: source of the draws.

    Returns:
        int64 [rows].
    """
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_k > 0:
        top, ids = probabilities.topk(min(top_k, logits.shape[-1]), dim=-1)
    else:
        top, ids = probabilities.sort(dim=-1, descending=True)
    # A token stays if the mass before it has not reached top_p yet, so the most likely one always does. After top-k
    # the mass
    # is renormalised first, as samplers that chain the two do.
    top = top / top.sum(-1, keepdim=True)
    top = top.masked_fill(top.cumsum(-1) - top >= top_p, 0.0)
    return ids.gather(-1, torch.multinomial(top, 1, generator=generator)).squeeze(-1)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> list[list[int]]:
    """Samples one continuation of each prompt; a continuation that ended carries `eos` as its last token.

    The draws depend on (prompts, seed) only: one generator, rows in order, rows that ended still draw until they are
    dropped.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), device=device)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits[
        :, -1
    ]
    position = positions[:, -1:]
    outputs: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_tokens):
        token = draw(logits.float(), temperature, top_k, top_p, generator)
        for row, (index, value) in enumerate(zip(alive, token.tolist(), strict=True)):
            if not ended[row]:
                outputs[index].append(value)
        ended |= token == eos
        if ended.all() or step + 1 == max_tokens:
            break
        if int(ended.sum()) * 8 >= len(alive):  # compacting copies the cache, so wait until it pays
            keep = (~ended).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive = [alive[row] for row in keep.tolist()]
            token, mask, position, ended = token[keep], mask[keep], position[keep], ended[keep]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=-1)
        position = position + 1
        logits = model(token[:, None], attention_mask=mask, position_ids=position, past_key_values=cache).logits[:, -1]
    return outputs
