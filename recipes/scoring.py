"""Log-probabilities and hidden states of several answers to one prompt, the prompt being read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel


def answer_logprobs(
    model: torch.nn.Module, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of each token of each answer.

    The answers share the keys and values of the prompt: expanding them in the graph gives the same gradients as
    reading the
    prompt once per answer, at less than two thirds of the work for short answers.

    Args:
        model: a causal model from transformers, or PEFT around one.
        prompt: token ids, at least two.
        answers: token ids, none empty.

    Returns:
        (logits, logprobs): float32 [answers, longest, vocabulary] logits of each answer's positions, and float32
        [answers, longest]
        log-probabilities of its tokens, zero beyond its end. Position t predicts token t.
    """
    inner = causal_model(model)
    ids, valid = _padded(answers, inner.device)
    cache = DynamicCache(config=inner.config)
    # The prompt's last token goes with the answers: it is the position that predicts their first token. Padding needs
    # no mask:
    # it comes after every real token and attention is causal.
    model(torch.tensor([list(prompt[:-1])], device=ids.device), past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(len(answers))
    last = torch.full((len(answers), 1), int(prompt[-1]), device=ids.device)
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
    trunk = causal_model(model).base_model
    ids, valid = _padded(answers, trunk.device)
    cache = DynamicCache(config=trunk.config)
    trunk(torch.tensor([list(prompt)], device=ids.device), past_key_values=cache)
    cache.batch_repeat_interleave(len(answers))
    return trunk(ids, past_key_values=cache).last_hidden_state.float(), valid


@dataclass(frozen=True)
class Encoded:
    """A prompt and its answer, token ids; the answer ends with the token that ends a turn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Predictions:
    """What a model predicts at every token of several answers, laid end to end.

    Attributes:
        logits: float32 [tokens, vocabulary].
        states: float32 [tokens, hidden], the last hidden states (after the final norm) that the logits come from.
        targets: int64 [tokens], the answers' tokens.
        rows: int64 [tokens], which answer a token belongs to.
    """

    logits: torch.Tensor
    states: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor

    def logprobs(self) -> torch.Tensor:
        """Log-probabilities of the targets, [tokens]."""
        return -torch.nn.functional.cross_entropy(self.logits, self.targets, reduction="none")


def predictions(model: torch.nn.Module, items: Sequence[Encoded]) -> Predictions:
    """Reads prompts with their answers in one batch; what all prompts begin with is read once, and logits are computed
    for the answers alone.

    Args:
        model: a causal model from transformers, or PEFT around one.
        items: not empty, and none of their parts is.
    """
    inner = causal_model(model)
    trunk = inner.base_model
    shared = _shared_prefix([item.prompt for item in items])
    ids, _ = _padded([(*item.prompt[shared:], *item.answer[:-1]) for item in items], inner.device)
    cache = DynamicCache(config=inner.config)
    if shared:
        trunk(torch.tensor([list(items[0].prompt[:shared])], device=ids.device), past_key_values=cache)
        cache.batch_repeat_interleave(len(items))
    # Padding needs no mask, see `answer_logprobs`.
    hidden = trunk(ids, past_key_values=cache).last_hidden_state
    starts = [len(item.prompt) - shared - 1 for item in items]
    rows = torch.cat([torch.full((len(item.answer),), row) for row, item in enumerate(items)])
    columns = torch.cat([torch.arange(s, s + len(i.answer)) for s, i in zip(starts, items, strict=True)])
    states = hidden[rows, columns]
    targets = torch.tensor([token for item in items for token in item.answer], device=states.device)
    return Predictions(output_logits(inner, states), states.float(), targets, rows)


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, at most all but the last of the shortest."""
    limit = min(len(prompt) for prompt in prompts) - 1
    for position in range(limit):
        if len({prompt[position] for prompt in prompts}) > 1:
            return position
    return limit


def output_logits(inner: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits, float32, of last hidden states; what some architectures do to them after the head is done as well."""
    logits = inner.get_output_embeddings()(states).float()
    config = inner.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits


def causal_model(model: torch.nn.Module) -> PreTrainedModel:
    """The causal model itself, without PEFT around it (the adapter's layers stay in it)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _padded(answers: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 and float32 [answers, longest]: token ids, 0 beyond the end; 1 for tokens, 0 beyond."""
    longest = max(len(answer) for answer in answers)
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    valid = torch.zeros(len(answers), longest)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(list(answer))
        valid[row, : len(answer)] = 1.0
    return ids.to(device), valid.to(device)
