"""How sure a row of scores is, and temperatures that follow it: low where little is in doubt, high where much is.

Plain torch on every device: it runs for the few sequences that ask for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = 1e-4
"""A temperature below it is 0: the best token. Scores divided by it still are numbers."""


def entropy(scores: Tensor) -> Tensor:
    """-sum_t p_t ln p_t of p = softmax of ``scores`` [n, vocabulary]: [n], nats; a token with -inf adds nothing. Row by
    row, since a vectorised sum may depend on how many rows share the call."""
    sums = scores.new_zeros(scores.shape[0])
    for row, own in enumerate(scores):
        logprobs = torch.log_softmax(own, dim=-1)
        sums[row] = -(logprobs.exp() * logprobs).masked_fill_(logprobs == -torch.inf, 0.0).sum()
    return sums


def entropy_temperatures(scores: Tensor, temperatures: Tensor, ranges: Tensor, exponents: Tensor) -> Tensor:
    """low + (high - low) * (H / log m)^exponent a row, with low = max(0, temperature - range) and high = temperature +
    range: the dynamic temperature of llama.cpp (``dynatemp_range``, ``dynatemp_exponent``).

    H is the entropy of softmax(scores), m the number of tokens that are not ruled out. There the tokens are what
    top-k, top-p and min-p left; here they are all that may come, because temperature goes before these.

    Args:
        scores: [n, vocabulary], float32 or float64; what is drawn from, before temperature.
        temperatures, ranges, exponents: [n].

    Returns:
        [n]; the temperature as it was for a row with less than two tokens, or with one that is not a number.
    """
    result = temperatures.clone()
    # Row by row: vectorised sums must not depend on how many other rows are computed with one.
    for row in range(scores.shape[0]):
        count = int((scores[row] > -torch.inf).sum())
        if count < 2:
            continue
        # The entropy over that of a uniform choice among the tokens that may come: 0 for one sure token, 1 for none.
        share = float(entropy(scores[row : row + 1])) / math.log(count)
        if not math.isfinite(share):
            continue
        temperature, spread = float(temperatures[row]), float(ranges[row])
        low, high = max(0.0, temperature - spread), temperature + spread
        warm = low + (high - low) * min(1.0, max(0.0, share)) ** float(exponents[row])
        result[row] = warm if warm >= LEAST else 0.0
    return result
