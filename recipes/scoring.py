"""Log-probabilities and hidden states of several answers to one prompt, the prompt being read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel


def answer_logprobs(
    model: torch.nn.Module, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of each token of each answer.

    The answers share the keys and values of the prompt: expanding them in the graph gives the same gradients as
    reading the
    prompt once an answer, at less than two thirds of the work for short answers.

    Args:
        model: a causal model from transformers, or PEFT around one.
        prompt: token ids, at least two.
        answers: token ids, none empty.

    Returns:
        (logits, logprobs): float32 [answers, longest, vocabulary] logits of each answer's positions, and float32
        [answers, longest]
        log-probabilities of its tokens, zero beyond its end. Position t predicts token t.
    """
    ids, valid = _padded(answers)
    inner = _inner(model)
    cache = DynamicCache(config=inner.config)
    # The prompt's last token goes with the answers: it is the position that predicts their first token. Padding needs
    # no mask:
    # it comes after every real token and attention is causal.
    model(torch.tensor([list(prompt[:-1])]), past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(len(answers))
    last = torch.full((len(answers), 1), int(prompt[-1]))
    logits = model(torch.cat([last, ids[:, :-1]], dim=-1), past_key_values=cache).logits.float()
    logprobs = -torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return logits, logprobs * valid


def answer_states(
    model: torch.nn.Module, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states (after the final norm) at each token of each answer; no logits are computed.

    Args:
        model: a causal model from transformers, or PEFT around one.
        prompt: token ids, at least one.
        answers: token ids, none empty. They share the prompt's keys and values, as in `answer_logprobs`.

    Returns:
        (states, valid): float32 [answers, longest, hidden], where position t has read the answer up to and with its
        token t, and float32 [answers, longest], 1 up to each answer's end and 0 beyond.
    """
    ids, valid = _padded(answers)
    trunk = _inner(model).base_model
    cache = DynamicCache(config=trunk.config)
    trunk(torch.tensor([list(prompt)]), past_key_values=cache)
    cache.batch_repeat_interleave(len(answers))
    return trunk(ids, past_key_values=cache).last_hidden_state.float(), valid


def _inner(model: torch.nn.Module) -> PreTrainedModel:
    """The causal model itself, without PEFT around it (the adapter's layers stay in it)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _padded(answers: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 and float32 [answers, longest]: token ids, 0 beyond the end; 1 for tokens, 0 beyond."""
    longest = max(len(answer) for answer in answers)
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    valid = torch.zeros(len(answers), longest)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(list(answer))
        valid[row, : len(answer)] = 1.0
    return ids, valid
