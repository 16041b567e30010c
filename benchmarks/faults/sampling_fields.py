"""Sound values for the fields that say how to sample: those of every generating endpoint, and those of OpenAI's older
ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_SHARE = 0.2


def sampling_fields(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Some fields of every generating endpoint, for ``body``, whose other fields are drawn already."""
    fields: dict[str, Callable[[], Any]] = {
        "temperature": lambda: rng.choice([0, 0.7, 1, 2]),
        "top_p": lambda: rng.choice([0, 0.01, 0.5, 0.9, 1]),
        "top_k": lambda: rng.choice([-1, 0, 1, 5, 1000]),
        "min_p": lambda: rng.choice([0, 0.05, 1]),
        "dynatemp_range": lambda: rng.choice([0, 0.3, 2]),
        "dynatemp_exponent": lambda: rng.choice([0.1, 1, 10]),
        "stream": lambda: rng.random() < 0.6,
        "seed": lambda: rng.randrange(-(1 << 63), 1 << 63),
        "presence_penalty": lambda: rng.uniform(-2, 2),
        "frequency_penalty": lambda: rng.uniform(-2, 2),
        "repetition_penalty": lambda: rng.uniform(0.1, 5),
        "ignore_eos": lambda: rng.random() < 0.5,
        "min_tokens": lambda: rng.randint(0, body.get("max_tokens", 1)),
        "cache_salt": lambda: rng.choice(["a", "é", "x" * 256]),
    }
    drawn = {name: value() for name, value in fields.items() if rng.random() < _SHARE}
    # A greedy answer has no temperature that could change, and nobody knows the exponent of a range that is not there.
    if 0 in (drawn.get("temperature", 1), drawn.get("top_p", 1)):
        drawn.pop("dynatemp_range", None)
    if "dynatemp_range" not in drawn:
        drawn.pop("dynatemp_exponent", None)
    return drawn


def older_fields(rng: random.Random, vocabulary: int, streamed: bool) -> dict[str, Any]:
    """Some fields of OpenAI's older endpoints and ours; token ids are below ``vocabulary``."""
    fields: dict[str, Callable[[], Any]] = {
        "n": lambda: rng.choice([1, 1, 2, 4]),
        "stop": lambda: rng.choice(["a", ["e", "\n"], [" the", "w300"]]),
        "stop_token_ids": lambda: rng.sample(range(vocabulary), 3),
        "skip_special_tokens": lambda: rng.random() < 0.5,
        "include_stop_str_in_output": lambda: rng.random() < 0.5,
        "logit_bias": lambda: {str(rng.randrange(vocabulary)): rng.uniform(-100, 100) for _ in range(3)},
        "user": lambda: "someone",
        # Most methods refuse it, and no stream has it.
        "prompt_logprobs": lambda: None if streamed or rng.random() < 0.8 else rng.choice([0, 1, 20]),
    }
    return {name: value() for name, value in fields.items() if rng.random() < _SHARE}
