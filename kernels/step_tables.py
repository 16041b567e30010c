"""What one decoding step does for each of its sequences, as tables: the input of ``fused_step``, all of fixed width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

LINEAR, DIVERGENCE, ROUTED = range(3)
"""Rules: see ``combine_logits``, ``combine_divergence``, ``combine_routed``."""

RULE, TOP_K, KEY_0, KEY_1, BASE, MASK_TOP_K, CANDIDATES, RESTRICTED, COUNTED, BIASES, WANTED, ALLOWED = range(12)
INT_PARAMS = 12
"""Columns of ``StepTables.int_params``."""
KEYS = [KEY_0, KEY_1]
ABSENT = [BASE, COUNTED, ALLOWED]
"""Those in which -1 says that there is no such thing."""

SCALE, TEMPERATURE, TOP_P, MIN_P, MASK_TOP_P, MASK_RELATIVE, REPETITION, PRESENCE, FREQUENCY = range(9)
FLOAT_PARAMS = 9
"""Columns of ``StepTables.float_params``."""


@dataclass(frozen=True)
class SampledTokens:
    """What a step gave n sequences. Scores and log-probabilities are float32, float64 for float64 logits.

    Attributes:
        tokens: [n] int64.
        logprobs: [n], nats, of the combined score before penalties, logit bias and temperature.
        other_tokens, other_logprobs: [n, wanted], int64 and nats, the best tokens by the combined score, best first;
            -1 and -inf beyond what the sequence wants.
        guided: [t, vocabulary], the combined scores of ``StepTables.traced`` as guidance left them: before ``allowed``
            rules any token out.
    """

    tokens: Tensor
    logprobs: Tensor
    other_tokens: Tensor
    other_logprobs: Tensor
    guided: Tensor


class RoutedRows(NamedTuple):
    """What ``route_rows`` makes of n routed sequences.

    Attributes:
        source_rows, weights: [n, 1 + most] int64 and float32, of ``StepTables``: the router's, then the experts' by
            score.
        rules: [n] int32, of ``StepTables``.
        leading, stayed: [n] int64, who writes the token and how many in a row with it: the next step's ``previous``
            and ``stayed``.
    """

    source_rows: Tensor
    weights: Tensor
    rules: Tensor
    leading: Tensor
    stayed: Tensor


class Budgets(NamedTuple):
    """The sequences of a step that have a KL budget (see ``within_budget``).

    Attributes:
        sequences: [b] int64, which these are.
        bases: [b] int64, the rows of the logits from which their budgets count.
        nats: [b] float64.
    """

    sequences: Tensor
    bases: Tensor
    nats: Tensor

    def none(self) -> Budgets:
        """No budget at all."""
        return Budgets(*(part[:0] for part in self))


class Ranges(NamedTuple):
    """The sequences of a step whose temperature follows their entropy (see ``entropy_temperatures``).

    Attributes:
        warmed: [r] int64, which these are.
        spreads, exponents: [r] float64.
    """

    warmed: Tensor
    spreads: Tensor
    exponents: Tensor

    def none(self) -> Ranges:
        """No such sequence."""
        return Ranges(*(part[:0] for part in self))


@dataclass(frozen=True)
class StepTables:
    """The tables of n sequences, on the device of the logits. Sets of different sizes are padded. Real numbers are
    float32, float64 for float64 logits.

    Attributes:
        source_rows: [n, k] int64, the row of the logits of each source; whatever the padding holds must be a row.
        weights: [n, k], 0 for padding. LINEAR, DIVERGENCE: of the sources. ROUTED: the first source is the
            router and its weight the complement, the others are experts and their weights shares that sum to 1.
        int_params: [n, INT_PARAMS] int32. RULE; TOP_K (0: off); KEY_0 and KEY_1, the key of the draw; BASE, the row
            of the logits that the plausibility mask asks (-1: no mask), with MASK_TOP_K (0: off); CANDIDATES and
            BIASES, how many entries the row's sparse tables have; RESTRICTED, whether all but the candidates are ruled
            out; COUNTED, the row of ``counts`` and ``seen`` (-1: no penalties); WANTED, how many alternatives are
            reported; ALLOWED, the row of ``allowed`` (-1: all tokens).
        float_params: [n, FLOAT_PARAMS]. SCALE, the alpha of DIVERGENCE or the weight of the experts of ROUTED;
            TEMPERATURE, TOP_P, MIN_P; MASK_TOP_P (1: off), MASK_RELATIVE (0: off); REPETITION, PRESENCE, FREQUENCY.
        candidates, values: [n, c], int64 and what is added at these tokens before budget and mask, centred already;
            c is 0 only where no sequence has candidates or is restricted to them.
        budgets: the KL budgets that scores keep to, between candidate values and mask.
        ranges: whose temperatures follow the entropy of what they are drawn from.
        biased, biases: [n, b], int64 and the logit bias; a token stands there once.
        counts, seen: [m, vocabulary] int32 and bool, see ``apply_penalties``.
        allowed: [g, vocabulary] bool, which tokens may come at all; the others are ruled out after the mask, which is
            judged among those that are left.
        traced: [t] int64, the sequences whose combined scores are wanted (see ``SampledTokens.guided``).
        linear: whether all rules are LINEAR. What the launch depends on is said here, and not read from the device.
        masks: whether a sequence may have a plausibility mask.
        truncates: whether a drawn sequence may have a top-k, top-p or min-p.
        wanted: the most alternatives any sequence wants reported.
    """

    source_rows: Tensor
    weights: Tensor
    int_params: Tensor
    float_params: Tensor
    candidates: Tensor
    values: Tensor
    budgets: Budgets
    ranges: Ranges
    biased: Tensor
    biases: Tensor
    counts: Tensor
    seen: Tensor
    allowed: Tensor
    traced: Tensor
    linear: bool = False
    masks: bool = True
    truncates: bool = True
    wanted: int = 0

    @property
    def plain(self) -> bool:
        """Whether there is nothing but linear sums: no other rule, no sparse values, no penalties, no mask."""
        sparse = self.candidates.shape[1] + self.biased.shape[1] + self.counts.shape[0] + self.allowed.shape[0]
        return self.linear and not self.masks and sparse == 0

    def of(self, sequences: Tensor) -> StepTables:
        """The tables of some of the sequences, by index [m] int64, but for KL budgets, ranges and traces."""
        own = ("source_rows", "weights", "int_params", "float_params", "candidates", "values", "biased", "biases")
        picked = {name: getattr(self, name).index_select(0, sequences) for name in own}
        return replace(self, **picked, budgets=self.budgets.none(), ranges=self.ranges.none(), traced=self.traced[:0])

    def changed(self, **columns: Tensor | float) -> StepTables:
        """A copy with columns of ``int_params`` and ``float_params`` replaced, each named in lower case."""
        int_params, float_params = self.int_params.clone(), self.float_params.clone()
        for name, column in columns.items():
            if name in _INT_PARAMS:
                int_params[:, _INT_PARAMS.index(name)] = column
            else:
                float_params[:, _FLOAT_PARAMS.index(name)] = column
        return replace(self, int_params=int_params, float_params=float_params)


_INT_PARAMS = (
    "rule", "top_k", "key_0", "key_1", "base", "mask_top_k", "candidates", "restricted", "counted", "biases", "wanted",
    "allowed",
)  # fmt: skip
_FLOAT_PARAMS = (
    "scale", "temperature", "top_p", "min_p", "mask_top_p", "mask_relative", "repetition", "presence", "frequency",
)  # fmt: skip
COLUMNS = (*_INT_PARAMS, *_FLOAT_PARAMS)
"""Their names, as ``changed`` takes them."""


def plain_tables(source_rows: Tensor, weights: Tensor) -> StepTables:
    """Greedy choice from linear sums of ``weights`` [n, k] times logits[``source_rows`` [n, k]]: nothing else is on."""
    n, device = len(source_rows), source_rows.device
    int_params = torch.zeros(n, INT_PARAMS, dtype=torch.int32, device=device)
    for column in ABSENT:
        int_params[:, column] = -1
    float_params = torch.zeros(n, FLOAT_PARAMS, dtype=torch.float32, device=device)
    for column in (SCALE, TOP_P, MASK_TOP_P, REPETITION):
        float_params[:, column] = 1.0
    return linear_tables(source_rows.contiguous(), weights.to(torch.float32).contiguous(), int_params, float_params)


def linear_tables(
    source_rows: Tensor, weights: Tensor, int_params: Tensor, float_params: Tensor, truncates: bool = False
) -> StepTables:
    """Linear sums, drawn as ``int_params`` and ``float_params`` say: there is nothing else."""
    none, flags = source_rows.new_empty(0), torch.empty(0, 0, dtype=torch.bool, device=source_rows.device)
    floats = torch.empty(0, dtype=torch.float64, device=source_rows.device)
    ids, reals = source_rows[:, :0], weights[:, :0]
    return StepTables(
        source_rows=source_rows,
        weights=weights,
        int_params=int_params,
        float_params=float_params,
        candidates=ids,
        values=reals,
        budgets=Budgets(none, none, floats),
        ranges=Ranges(none, floats, floats),
        biased=ids,
        biases=reals,
        counts=int_params[:0, :0],
        seen=flags,
        allowed=flags,
        traced=none,
        linear=True,
        masks=False,
        truncates=truncates,
    )


def own_rows(scores: Tensor) -> StepTables:
    """Tables that take every row of ``scores`` [n, vocabulary] as it is."""
    n = len(scores)
    return plain_tables(torch.arange(n, device=scores.device)[:, None], torch.ones(n, 1, device=scores.device))
