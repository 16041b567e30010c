"""What one decoding step does for each of its sequences, as tables: the input of ``fused_step``, all of fixed width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

LINEAR, DIVERGENCE, ROUTED = range(3)
"""Rules: see ``combine_logits``, ``combine_divergence``, ``combine_routed``."""

RULE, TOP_K, KEY_0, KEY_1, BASE, MASK_TOP_K, CANDIDATES, RESTRICTED, COUNTED, BIASES, WANTED, ALLOWED = range(12)
CHOICES = 12
"""Columns of ``StepTables.choices``."""
KEYS = [KEY_0, KEY_1]
ABSENT = [BASE, COUNTED, ALLOWED]
"""Those in which -1 says that there is no such thing."""

SCALE, TEMPERATURE, TOP_P, MIN_P, MASK_TOP_P, MASK_RELATIVE, REPETITION, PRESENCE, FREQUENCY = range(9)
NUMBERS = 9
"""Columns of ``StepTables.numbers``."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave n sequences.

    Attributes:
        tokens: [n] int64.
        logprobs: [n] float32, nats, of the combined score before penalties, logit bias and temperature.
        thresholds: [n] float32, the least score after temperature that could be drawn; -inf where nothing was cut.
        other_tokens, other_logprobs: [n, wanted] int64 and float32, the best tokens by the combined score, best first;
            -1 and -inf beyond what the sequence wants.
    """

    tokens: Tensor
    logprobs: Tensor
    thresholds: Tensor
    other_tokens: Tensor
    other_logprobs: Tensor


class RoutedRows(NamedTuple):
    """What ``route_rows`` makes of n routed sequences.

    Attributes:
        rows, weights: [n, 1 + most] int64 and float32, of ``StepTables``: the router's, then the experts' by score.
        rules: [n] int32, of ``StepTables``.
        leading, stayed: [n] int64, who writes the token and how many in a row with it: the next step's ``previous``
            and ``stayed``.
    """

    rows: Tensor
    weights: Tensor
    rules: Tensor
    leading: Tensor
    stayed: Tensor


@dataclass(frozen=True)
class StepTables:
    """The tables of n sequences, on the device of the logits. Sets of different sizes are padded.

    Attributes:
        rows: [n, k] int64, the row of the logits of each source; whatever the padding holds must be a row.
        weights: [n, k] float32, 0 for padding. LINEAR, DIVERGENCE: of the sources. ROUTED: the first source is the
            router and its weight the complement, the others are experts and their weights shares that sum to 1.
        choices: [n, CHOICES] int32. RULE; TOP_K (0: off); KEY_0 and KEY_1, the key of the draw; BASE, the row of the
            logits that the plausibility mask asks (-1: no mask), with MASK_TOP_K (0: off); CANDIDATES and BIASES, how
            many entries the row's sparse tables have; RESTRICTED, whether all but the candidates are ruled out;
            COUNTED, the row of ``counts`` and ``seen`` (-1: no penalties); WANTED, how many alternatives are reported;
            ALLOWED, the row of ``allowed`` (-1: all tokens).
        numbers: [n, NUMBERS] float32. SCALE, the alpha of DIVERGENCE or the weight of the experts of ROUTED;
            TEMPERATURE, TOP_P, MIN_P; MASK_TOP_P (1: off), MASK_RELATIVE (0: off); REPETITION, PRESENCE, FREQUENCY.
        candidates, values: [n, c] int64 and float32: what is added at which tokens before the mask, centred already.
        biased, biases: [n, b] int64 and float32, the logit bias; a token stands there once.
        counts, seen: [m, vocabulary] int32 and bool, see ``apply_penalties``.
        allowed: [g, vocabulary] bool, which tokens may come at all; the others are ruled out after the mask, which is
            judged among those that are left.
        linear: whether all rules are LINEAR. What the launch depends on is said here, and not read from the device.
        masks: whether a sequence may have a plausibility mask.
        truncates: whether a drawn sequence may have a top-k, top-p or min-p.
        wanted: the most alternatives any sequence wants reported.
    """

    rows: Tensor
    weights: Tensor
    choices: Tensor
    numbers: Tensor
    candidates: Tensor
    values: Tensor
    biased: Tensor
    biases: Tensor
    counts: Tensor
    seen: Tensor
    allowed: Tensor
    linear: bool = False
    masks: bool = True
    truncates: bool = True
    wanted: int = 0

    @property
    def plain(self) -> bool:
        """Whether there is nothing but linear sums: no other rule, no sparse values, no penalties, no mask."""
        sparse = self.candidates.shape[1] + self.biased.shape[1] + self.counts.shape[0] + self.allowed.shape[0]
        return self.linear and not self.masks and sparse == 0

    def changed(self, **columns: Tensor | float) -> StepTables:
        """A copy with columns of ``choices`` and ``numbers`` replaced, each named in lower case."""
        choices, numbers = self.choices.clone(), self.numbers.clone()
        for name, column in columns.items():
            if name in _CHOICES:
                choices[:, _CHOICES.index(name)] = column
            else:
                numbers[:, _NUMBERS.index(name)] = column
        return replace(self, choices=choices, numbers=numbers)


_CHOICES = (
    "rule", "top_k", "key_0", "key_1", "base", "mask_top_k", "candidates", "restricted", "counted", "biases", "wanted",
    "allowed",
)  # fmt: skip
_NUMBERS = (
    "scale", "temperature", "top_p", "min_p", "mask_top_p", "mask_relative", "repetition", "presence", "frequency",
)  # fmt: skip
COLUMNS = (*_CHOICES, *_NUMBERS)
"""Their names, as ``changed`` takes them."""


def plain_tables(rows: Tensor, weights: Tensor) -> StepTables:
    """Greedy choice from linear sums of ``weights`` [n, k] times logits[``rows`` [n, k]]: nothing else is on."""
    n, device = len(rows), rows.device
    choices = torch.zeros(n, CHOICES, dtype=torch.int32, device=device)
    for column in ABSENT:
        choices[:, column] = -1
    numbers = torch.zeros(n, NUMBERS, dtype=torch.float32, device=device)
    for column in (SCALE, TOP_P, MASK_TOP_P, REPETITION):
        numbers[:, column] = 1.0
    return linear_tables(rows.contiguous(), weights.to(torch.float32).contiguous(), choices, numbers)


def linear_tables(rows: Tensor, weights: Tensor, choices: Tensor, numbers: Tensor) -> StepTables:
    """Linear sums, drawn as ``choices`` and ``numbers`` say without truncation: there is nothing else."""
    n, device = len(rows), rows.device
    return StepTables(
        rows=rows,
        weights=weights,
        choices=choices,
        numbers=numbers,
        candidates=torch.empty(n, 0, dtype=torch.int64, device=device),
        values=torch.empty(n, 0, dtype=torch.float32, device=device),
        biased=torch.empty(n, 0, dtype=torch.int64, device=device),
        biases=torch.empty(n, 0, dtype=torch.float32, device=device),
        counts=torch.empty(0, 0, dtype=torch.int32, device=device),
        seen=torch.empty(0, 0, dtype=torch.bool, device=device),
        allowed=torch.empty(0, 0, dtype=torch.bool, device=device),
        linear=True,
        masks=False,
        truncates=False,
    )


def own_rows(scores: Tensor) -> StepTables:
    """Tables that take every row of ``scores`` [n, vocabulary] as it is."""
    n = len(scores)
    return plain_tables(torch.arange(n, device=scores.device)[:, None], torch.ones(n, 1, device=scores.device))
