"""Drawing on a CPU: one compiled pass after another over each row, without sorting the vocabulary.

Every row is computed by itself, so what it draws does not depend on the batch. Meaning as in ``reference``.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from ladle.kernels.compiler import INNER, OUTER, one_at_a_time
from ladle.kernels.half_dots import exp
from ladle.kernels.layer import Floats

BUCKETS = 2048
"""The last one takes all that is further from the best."""
WIDTH = np.float32(1 / 64)
"""Of a bucket, in nats below the best score."""
MOST_NOISE = np.float32(16.7)
"""More than Gumbel noise of 23 random bits gets."""
GOLDEN = np.uint32(0x9E3779B9)


def sample_rows(
    scores: Floats,
    temperature: Floats,
    top_k: NDArray[np.int64],
    top_p: Floats,
    min_p: Floats,
    keys: NDArray[np.int32],
) -> NDArray[np.int64]:
    """See ``reference.sample``: ``scores`` [n, vocabulary] contiguous, the parameters [n], ``keys`` [n, 2] -> [n]."""
    drawn = np.empty(scores.shape[0], np.int64)
    with one_at_a_time:
        _sample(scores, temperature, top_k, top_p, min_p, keys, drawn, numba.get_num_threads())
    return drawn


def logprobs_of(scores: Floats, tokens: NDArray[np.int64]) -> Floats:
    """See ``reference.token_logprobs``: ``scores`` [n, vocabulary] contiguous, ``tokens`` [n] -> [n]."""
    found = np.empty(scores.shape[0], np.float32)
    with one_at_a_time:
        _logprobs(scores, tokens, found, numba.get_num_threads())
    return found


@njit(parallel=True, **OUTER)
def _sample(
    scores: Floats,
    temperature: Floats,
    top_k: NDArray[np.int64],
    top_p: Floats,
    min_p: Floats,
    keys: NDArray[np.int32],
    drawn: NDArray[np.int64],
    threads: int,
) -> None:
    rows, vocabulary = scores.shape
    for part in prange(threads):
        scaled, weights = np.empty(vocabulary, np.float32), np.empty(vocabulary, np.float32)
        for row in range(part * rows // threads, (part + 1) * rows // threads):
            if temperature[row] > 0:
                for i in range(vocabulary):
                    scaled[i] = scores[row, i] / temperature[row]
                least = _threshold(scaled, weights, top_k[row], top_p[row], min_p[row])
                drawn[row] = _draw(scaled, least, np.uint32(keys[row, 0]), np.uint32(keys[row, 1]))
            else:
                drawn[row] = _first_of(scores[row], _greatest(scores[row]))


@njit(parallel=True, **OUTER)
def _logprobs(scores: Floats, tokens: NDArray[np.int64], found: Floats, threads: int) -> None:
    rows = scores.shape[0]
    for part in prange(threads):
        for row in range(part * rows // threads, (part + 1) * rows // threads):
            values = scores[row]
            best = _greatest(values)
            found[row] = values[tokens[row]] - best - np.log(_mass(values, best))


@njit(**INNER)
def _greatest(values: Floats) -> np.float32:
    """Of what is a number; -inf where nothing is."""
    best = np.float32(-np.inf)
    for i in range(values.shape[0]):
        best = values[i] if values[i] > best else best
    return best


@njit(**INNER)
def _first_of(values: Floats, wanted: np.float32) -> int:
    for i in range(values.shape[0]):
        if values[i] == wanted:
            return i
    return values.shape[0] - 1


@njit(**INNER)
def _mass(values: Floats, best: np.float32) -> np.float32:
    """sum exp(value - best), NaN where a value is."""
    total = np.float32(0)
    for i in range(values.shape[0]):
        total += exp(values[i] - best)
    return total


@njit(**INNER)
def _bucket(value: np.float32, best: np.float32) -> np.int64:
    below = (best - value) / WIDTH
    return np.int64(below) if below < np.float32(BUCKETS - 1) else np.int64(BUCKETS - 1)


@njit(**INNER)
def _threshold(scaled: Floats, weights: Floats, top_k: int, top_p: np.float32, min_p: np.float32) -> np.float32:
    """The least of ``scaled`` that survives, see ``reference.truncation_threshold``; ``weights`` is scratch.

    Which bucket it lies in is counted first, and only that one is sorted.
    """
    vocabulary = scaled.shape[0]
    best = _greatest(scaled)
    least = best + np.float32(np.log(min_p))
    limited, nucleus = 0 < top_k < vocabulary, top_p < 1
    if not (limited or nucleus) or not np.isfinite(best):
        return least
    kth = np.float32(-np.inf)
    if limited:
        kth = _kth_greatest(scaled, best, top_k)
        least = max(least, kth)
    if nucleus:
        least = max(least, _nucleus(scaled, weights, best, kth, top_p))
    return least


@njit(**INNER)
def _kth_greatest(scaled: Floats, best: np.float32, k: int) -> np.float32:
    counts = np.zeros(BUCKETS, np.int64)
    for i in range(scaled.shape[0]):
        if scaled[i] == scaled[i]:
            counts[_bucket(scaled[i], best)] += 1
    bucket, before = 0, 0
    while bucket < BUCKETS - 1 and before + counts[bucket] < k:
        before += counts[bucket]
        bucket += 1
    inside = _members(scaled, best, np.float32(-np.inf), bucket, counts[bucket])
    return inside[max(0, inside.shape[0] - (k - before))]


@njit(**INNER)
def _nucleus(scaled: Floats, weights: Floats, best: np.float32, kth: np.float32, top_p: np.float32) -> np.float32:
    """The last score, from the best down, before which the mass of those from ``kth`` on is less than ``top_p``."""
    masses, counts = np.zeros(BUCKETS, np.float64), np.zeros(BUCKETS, np.int64)
    for i in range(scaled.shape[0]):
        weights[i] = exp(scaled[i] - best)
    for i in range(scaled.shape[0]):
        if scaled[i] >= kth:
            bucket = _bucket(scaled[i], best)
            masses[bucket] += weights[i]
            counts[bucket] += 1
    wanted = np.float64(top_p) * masses.sum()
    bucket, before, last = 0, 0.0, 0
    while bucket < BUCKETS - 1 and before + masses[bucket] < wanted:
        before += masses[bucket]
        last = bucket if counts[bucket] else last
        bucket += 1
    # Rounding may leave the last bucket empty.
    bucket = bucket if counts[bucket] else last
    inside = _members(scaled, best, kth, bucket, counts[bucket])
    place = inside.shape[0] - 1
    before += exp(inside[place] - best)
    while place > 0 and before < wanted:
        place -= 1
        before += exp(inside[place] - best)
    return inside[place]


@njit(**INNER)
def _members(scaled: Floats, best: np.float32, least: np.float32, bucket: int, count: int) -> Floats:
    """What lies in ``bucket`` and is not below ``least``, ascending."""
    found = np.empty(count, np.float32)
    place = 0
    for i in range(scaled.shape[0]):
        if scaled[i] >= least and _bucket(scaled[i], best) == bucket and place < count:
            found[place] = scaled[i]
            place += 1
    return np.sort(found[:place])


@njit(**INNER)
def _draw(scaled: Floats, least: np.float32, first: np.uint32, second: np.uint32) -> int:
    """The greatest sum of score and noise among the scores from ``least`` on, the first of equal ones. A row that holds
    no number gives its last token."""
    vocabulary = scaled.shape[0]
    chosen, highest = vocabulary - 1, np.float32(-np.inf)
    for i in range(vocabulary):
        # No noise lifts a score past one that is further ahead than the most there can be.
        if scaled[i] >= least and scaled[i] + MOST_NOISE >= highest:
            noisy = scaled[i] + _gumbel(np.uint32(i), first, second)
            if noisy > highest:
                chosen, highest = i, noisy
    return chosen


@njit(**INNER)
def _mix(x: np.uint32) -> np.uint32:
    x ^= x >> np.uint32(16)
    x = np.uint32(x * np.uint32(0x85EBCA6B))
    x ^= x >> np.uint32(13)
    x = np.uint32(x * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(**INNER)
def _gumbel(token: np.uint32, first: np.uint32, second: np.uint32) -> np.float32:
    """See ``reference.gumbel``, bit for bit up to the logarithms' last places."""
    x = _mix(np.uint32(token * GOLDEN) ^ first)
    x = _mix(np.uint32(x + second))
    uniform = (np.float32(x >> np.uint32(9)) + np.float32(0.5)) * np.float32(2.0**-23)
    return -np.float32(np.log(-np.float32(np.log(uniform))))
