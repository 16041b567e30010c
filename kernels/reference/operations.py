"""The decoding step in plain torch: the meaning of every kernel, and what runs where there is no GPU.

Scores are [sequences, vocabulary] float32 (float64 in tests). The order is fixed: sources, combine rule, logit bias and
penalties, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -1640531527  # 0x9E3779B9 as a signed 32-bit number
_FIRST_TRY = 128


def combine_logits(logits: Tensor, source_rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of source logits: S_i = w_i0 l_i0 + (sum_{k>0} w_ik l_ik), l_ik = logits[source_rows[i, k]].

    ``logits`` [rows, vocabulary] any float dtype, ``source_rows`` [sequences, k] int64, ``weights`` [sequences, k].
    Returns float32 (float64 for float64 logits). A source of weight 0 is left out, not multiplied, so that strength 0
    gives the base bit for bit even beside an infinite logit. The sources after the first are summed by themselves:
    where a guide and its reference agree their weights cancel exactly, and what is left is the first source bit for
    bit. Raw logits are as good as log-probabilities here: the rule is linear, so the normalisers are constant over the
    vocabulary (methods F1).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores = _weighted(logits, source_rows[:, 0], weights[:, 0], dtype)
    if source_rows.shape[1] == 1:
        return scores
    # Only sequences with a second source of weight other than 0 are touched again: the rest keep even the sign of a
    # zero.
    guided = (weights[:, 1:] != 0).any(dim=1).nonzero()[:, 0]
    if guided.numel() == 0:
        return scores
    guidance = torch.zeros(guided.numel(), logits.shape[1], dtype=dtype, device=logits.device)
    for source in range(1, source_rows.shape[1]):
        active = weights[guided, source].nonzero()[:, 0]
        if active.numel():
            picked = guided[active]
            guidance[active] += _weighted(logits, source_rows[picked, source], weights[picked, source], dtype)
    scores[guided] += guidance
    return scores


def _weighted(logits: Tensor, source_rows: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """A fresh tensor [n, vocabulary] of weights[i] * logits[source_rows[i]], zero where the weight is."""
    part = logits.index_select(0, source_rows).to(dtype)
    if not bool((weights == 1).all()):
        part *= weights[:, None].to(dtype)
        part.masked_fill_((weights == 0)[:, None], 0)
    return part


def combine_divergence(logits: Tensor, source_rows: Tensor, weights: Tensor, alpha: Tensor) -> Tensor:
    """Policies combined for a divergence other than the reverse KL: S = -logsumexp_k(-alpha lp_k + ln w_k) / alpha.

    MOD (arXiv 2406.18853): alpha 1 is its rule for the forward KL, the weighted harmonic mean of the probabilities. The
    authors' code leaves out the division by alpha, which no argmax sees; sampling at temperature 1 needs it (our
    reconstruction). Shapes as in ``combine_logits``, ``alpha`` [sequences] > 0, weights >= 0, not all 0 in a row.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # Row by row: vectorised logarithms differ in the last bit between the body and the tail of a tensor, and where a
    # row's tail lies must not depend on how many others are computed with it.
    scores = []
    for row_sources, row_weights, a in zip(source_rows, weights.to(dtype), alpha.to(dtype), strict=True):
        taking_part = row_weights != 0
        logprobs = torch.log_softmax(logits.index_select(0, row_sources[taking_part]).to(dtype), dim=-1)
        terms = row_weights[taking_part].log()[:, None] - a * logprobs
        scores.append(torch.logsumexp(terms, dim=0) / -a)
    return torch.stack(scores)


def rule_out_implausible(scores: Tensor, base: Tensor, top_k: Tensor, top_p: Tensor, relative: Tensor) -> Tensor:
    """-inf, in place, where ``base`` finds a token implausible: outside its ``top_k`` best (0: off), outside the
    nucleus of mass ``top_p`` (1: off), or less likely than ``relative`` times its best (0: off).

    ``scores``, ``base`` [n, vocabulary]; the parameters [n]. The conventions are those of contrastive decoding (arXiv
    2210.15097, relative), DExperts (2105.03023, top-p) and ARGS or PAD (2402.01694, 2410.04070, top-k). NaN stays.
    """
    threshold = truncation_threshold(base, top_k, top_p, relative)
    return scores.masked_fill_((base < threshold[:, None]) & ~scores.isnan(), -torch.inf)


def add_candidate_values(
    scores: Tensor, candidates: Tensor, values: Tensor, centred: Tensor, restricted: Tensor
) -> Tensor:
    """Add ``values`` [n, k] to ``scores`` [n, vocabulary] at the tokens ``candidates`` [n, k], in place.

    ``centred`` [n] bool: minus their mean over the candidates, which leaves the candidates' mass against the rest about
    as it was (VAS, arXiv 2405.06639; methods F4). ``restricted`` [n] bool: all other tokens become -inf.
    """
    values = torch.where(centred[:, None], values - values.mean(dim=-1, keepdim=True), values).to(scores.dtype)
    # Gathered before the others are ruled out, since candidates are among what the fill covers.
    summed = scores.gather(1, candidates) + values
    scores.masked_fill_(restricted[:, None], -torch.inf)
    return scores.scatter_(1, candidates, summed)


def apply_penalties(
    scores: Tensor, counts: Tensor, seen: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """Penalise tokens already there, in place.

    ``counts`` [n, vocabulary]: how often a token stands in the output; ``seen`` [n, vocabulary] bool: whether it stands
    in prompt or output; ``repetition`` (CTRL, arXiv 1909.05858: divides positive scores, multiplies negative ones),
    ``presence``, ``frequency`` (OpenAI: subtracted once, and once an occurrence) are [n].
    """
    repetition = repetition[:, None]
    penalised = torch.where(scores > 0, scores / repetition, scores * repetition)
    scores.copy_(torch.where(seen, penalised, scores))
    scores -= presence[:, None] * (counts > 0) + frequency[:, None] * counts
    return scores


def _mix(x: Tensor) -> Tensor:
    """murmur3's 32-bit finaliser on int32 (products wrap; shifts are made logical by masking)."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * -2048144789
    x = x ^ ((x >> 13) & 0x7FFFF)
    x = x * -1028477387
    return x ^ ((x >> 16) & 0xFFFF)


def gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel(0, 1) noise that (key, token) decides alone: a counter-based generator with nothing to advance.

    ``keys`` [..., 2] int32 (one pair per sequence and position), ``tokens`` int32, broadcast against keys[..., 0].
    Returns float32. 23 random bits: the noise lies within (-2.8, 16.7).
    """
    x = _mix(tokens * _GOLDEN ^ keys[..., 0])
    x = _mix(x + keys[..., 1])
    uniform = (((x >> 9) & 0x7FFFFF).to(torch.float32) + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def truncation_threshold(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Per row, the least score that survives top-k, then top-p over what top-k left, then min-p; ties survive.

    ``scaled`` [n, vocabulary] scores after temperature; ``top_k`` [n] int64 (0: off), ``top_p`` [n] (1: off), ``min_p``
    [n] (0: off). Returns [n]; -inf where nothing is cut.
    """
    _n, vocabulary = scaled.shape
    best = scaled.max(dim=-1).values
    threshold = best + torch.log(min_p.to(scaled.dtype))
    limit = torch.where(top_k > 0, top_k.clamp(max=vocabulary), vocabulary)
    nucleus = top_p < 1
    cut = nucleus | (limit < vocabulary)
    if not bool(cut.any()):
        return threshold
    # No full sort: the best ``width`` of a row are taken, and only rows whose nucleus reaches beyond them are tried
    # again with eight times as many.
    largest_k = int(torch.where(limit < vocabulary, limit, 0).max())
    width = min(vocabulary, max(_FIRST_TRY, largest_k))
    rows = cut.nonzero()[:, 0]
    while rows.numel():
        part = scaled.index_select(0, rows)
        values = torch.topk(part, width, dim=-1).values
        kth = values.gather(1, (limit[rows] - 1).clamp(max=width - 1)[:, None])
        limited = limit[rows] < vocabulary
        # Ties with the k-th value survive top-k, so they belong to its mass, also those beyond `width`.
        inside = torch.where(limited[:, None], part >= kth, True)
        logprobs = torch.log_softmax(part.masked_fill(~inside, -torch.inf), dim=-1)
        mass = torch.topk(logprobs, width, dim=-1).values.exp()
        # A token is in the nucleus when the mass before it is less than top-p, so the one that crosses the border
        # stays.
        before = mass.cumsum(-1) - mass
        kept = (before < top_p[rows, None]) & (~limited[:, None] | (values >= kth))
        kept[:, 0] = True
        count = kept.sum(-1, keepdim=True)
        least = values.gather(1, count - 1)[:, 0]
        least = torch.where(nucleus[rows], least, kth[:, 0])
        # A nucleus that fills all of ``width`` may go on beyond it; one that top-k limits cannot, as ``width`` holds
        # all k.
        done = ~nucleus[rows] | (count[:, 0] < width) | limited
        if width == vocabulary:
            done = torch.ones_like(done)
        threshold[rows[done]] = torch.maximum(threshold[rows[done]], least[done])
        rows = rows[~done]
        width = min(vocabulary, width * 8)
    return threshold


def sample(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
    """Draw one token a row by the Gumbel-max rule; temperature 0 takes the best.

    ``scores`` [n, vocabulary] float32; the parameters [n]; ``keys`` [n, 2] int32. Returns [n] int64. The noise of a
    token depends on its key and id alone, so a truncated row draws what the full row would draw among the survivors.
    A row that holds NaN gives some id within the vocabulary.
    """
    tokens = scores.argmax(dim=-1)
    drawn = (temperature > 0).nonzero()[:, 0]
    if drawn.numel() == 0:
        return tokens
    top_k, top_p, min_p = top_k[drawn], top_p[drawn], min_p[drawn]
    scaled = scores.index_select(0, drawn) / temperature[drawn, None].to(scores.dtype)
    keys = keys[drawn]
    threshold = truncation_threshold(scaled, top_k, top_p, min_p)
    whole = threshold == -torch.inf
    picks = torch.empty_like(drawn)
    if bool(whole.any()):
        every = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
        noise = gumbel(keys[whole][:, None, :], every[None])
        picks[whole] = (scaled[whole] + noise).argmax(dim=-1)
    if not bool(whole.all()):
        part = (~whole).nonzero()[:, 0]
        # Truncated rows: noise is made for the survivors alone, and an argmax is taken per row over the flat list of
        # them.
        row, token = (scaled[part] >= threshold[part, None]).nonzero(as_tuple=True)
        noisy = scaled[part][row, token] + gumbel(keys[part][row], token.to(torch.int32))
        best = noisy.new_full((part.numel(),), -torch.inf).scatter_reduce_(0, row, noisy, "amax")
        winners = noisy == best[row]
        # Equal sums are possible; the smallest id wins, as argmax does in the dense case.
        # A row with NaN has no winner; the last id stands in for it, and its logprob is NaN.
        last = scores.shape[1] - 1
        chosen = torch.full_like(part, last).scatter_reduce_(0, row[winners], token[winners], "amin")
        picks[part] = chosen
    tokens[drawn] = picks
    return tokens


def token_logprobs(scores: Tensor, tokens: Tensor) -> Tensor:
    """log-softmax of ``scores`` [n, vocabulary] at ``tokens`` [n]: [n], nats.

    Through log_softmax, not logsumexp: its rows are summed alike however many there are, so a logprob does not depend
    on the batch.
    """
    return torch.log_softmax(scores, dim=-1).gather(1, tokens[:, None])[:, 0]


def best_logprobs(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` greatest values of log-softmax of ``scores`` [n, vocabulary], best first, and their tokens: two
    [n, count], nats and int64. Of equal ones any may come first; all tokens where ``count`` is more than there are.
    """
    best = torch.topk(torch.log_softmax(scores, dim=-1), min(count, scores.shape[1]), dim=-1)
    return best.values, best.indices


def guidance_shift(base: Tensor, final: Tensor) -> Tensor:
    """KL(base, final) in nats a row of two score matrices [n, vocabulary]."""
    base_logprobs = torch.log_softmax(base, dim=-1)
    terms = base_logprobs.exp() * (base_logprobs - torch.log_softmax(final, dim=-1))
    # A token that the base rules out adds nothing (0 log 0 = 0); one that only `final` rules out makes it infinite.
    return terms.masked_fill_(base_logprobs == -torch.inf, 0.0).sum(dim=-1).clamp_(min=0)
