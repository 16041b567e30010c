"""Drawing on a CPU: one compiled pass after another over each row, without sorting the vocabulary.

Every row is computed by itself, so what it draws does not depend on the batch. Meaning as in ``reference``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ladle.kernels.cpu.arrays import Floats
from ladle.kernels.cpu.compiling.compiler import EXACT, INNER, compiled
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.elementary import exp

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
    _each_part(lambda *part: _sample(scores, temperature, top_k, top_p, min_p, keys, drawn, *part), drawn.shape[0])
    return drawn


def logprobs_of(scores: Floats, tokens: NDArray[np.int64]) -> Floats:
    """See ``reference.token_logprobs``: ``scores`` [n, vocabulary] contiguous, ``tokens`` [n] -> [n]."""
    logprobs = np.empty(scores.shape[0], np.float32)
    _each_part(lambda *part: _logprobs(scores, tokens, logprobs, *part), logprobs.shape[0])
    return logprobs


_threads = ThreadPoolExecutor(thread_name_prefix="ladle-draw")
"""Loops that give up the interpreter's lock run side by side in them. Parallel loops of the compiler's own would take
seconds more to compile."""


def _each_part(loop: Callable[[int, int], None], rows: int) -> None:
    """``loop(first, end)`` over parts of ``rows``, one a thread of torch's."""
    # Equal shares of rows; the first is computed by the calling thread.
    share = -(-rows // torch.get_num_threads())
    parts = [(first, min(first + share, rows)) for first in range(0, rows, share or 1)]
    others = [_threads.submit(loop, *part) for part in parts[1:]]
    for part in parts[:1]:
        loop(*part)
    for other in others:
        other.result()


@compiled()
def _sample(
    scores: Floats,
    temperature: Floats,
    top_k: NDArray[np.int64],
    top_p: Floats,
    min_p: Floats,
    keys: NDArray[np.int32],
    drawn: NDArray[np.int64],
    first: int,
    end: int,
) -> None:
    vocabulary = scores.shape[1]
    scaled, weights = np.empty(vocabulary, np.float32), np.empty(vocabulary, np.float32)
    for row in range(first, end):
        # Gumbel-max: an argmax over noisy scores is a draw from their softmax, without normalising it.
        if temperature[row] > 0:
            _scale(scores[row], temperature[row], scaled)
            least = _threshold(scaled, weights, top_k[row], top_p[row], min_p[row])
            drawn[row] = _draw(scaled, least, np.uint32(keys[row, 0]), np.uint32(keys[row, 1]))
        else:
            drawn[row] = _first_of(scores[row], _greatest(scores[row]))


@compiled()
def _logprobs(scores: Floats, tokens: NDArray[np.int64], logprobs: Floats, first: int, end: int) -> None:
    for row in range(first, end):
        values = scores[row]
        best = _greatest(values)
        logprobs[row] = values[tokens[row]] - best - np.log(_mass(values, best))


@inner(**EXACT)
def _scale(values: Floats, temperature: np.float32, scaled: Floats) -> None:
    """A quotient as IEEE rounds it: equal scores stay equal wherever they stand in the row."""
    for i in range(values.shape[0]):
        scaled[i] = values[i] / temperature


@inner(**INNER)
def _greatest(values: Floats) -> np.float32:
    """The greatest of the values that are numbers; -inf where none is."""
    best = np.float32(-np.inf)
    for i in range(values.shape[0]):
        best = values[i] if values[i] > best else best
    return best


@inner(**INNER)
def _first_of(values: Floats, wanted: np.float32) -> int:
    for i in range(values.shape[0]):
        if values[i] == wanted:
            return i
    return values.shape[0] - 1


@inner(**INNER)
def _mass(values: Floats, best: np.float32) -> np.float32:
    """sum exp(value - best), NaN where a value is."""
    total = np.float32(0)
    for i in range(values.shape[0]):
        total += exp(values[i] - best)
    return total


@inner(**INNER)
def _bucket(value: np.float32, best: np.float32) -> np.int64:
    # Buckets of equal width in nats below the best: fine where the mass is, and the last one for the whole tail.
    below = (best - value) / WIDTH
    return np.int64(below) if below < np.float32(BUCKETS - 1) else np.int64(BUCKETS - 1)


@inner(**INNER)
def _threshold(scaled: Floats, weights: Floats, top_k: int, top_p: np.float32, min_p: np.float32) -> np.float32:
    """The least of ``scaled`` that survives, see ``reference.truncation_threshold``; ``weights`` is scratch.

    Which bucket it lies in is counted first, and only that one is sorted.
    """
    vocabulary = scaled.shape[0]
    best = _greatest(scaled)
    # min-p is a bound below the best score: log(p / p_max) >= log(min_p).
    least = best + np.float32(np.log(min_p))
    limited, nucleus = 0 < top_k < vocabulary, top_p < 1
    # A best score that is no finite number leaves nothing to measure from: no bucket would be right.
    if not (limited or nucleus) or not np.isfinite(best):
        return least
    # top-k goes first: the nucleus is taken of the k survivors, renormalised.
    kth = np.float32(-np.inf)
    if limited:
        kth = _kth_greatest(scaled, best, top_k)
        least = max(least, kth)
    if nucleus:
        least = max(least, _nucleus(scaled, weights, best, kth, top_p))
    return least


@inner(**INNER)
def _kth_greatest(scaled: Floats, best: np.float32, k: int) -> np.float32:
    counts = np.zeros(BUCKETS, np.int64)
    for i in range(scaled.shape[0]):
        if scaled[i] == scaled[i]:
            counts[_bucket(scaled[i], best)] += 1
    # A histogram select: walk the buckets from the best score down to the one that the k-th lies in.
    bucket, before = 0, 0
    while bucket < BUCKETS - 1 and before + counts[bucket] < k:
        before += counts[bucket]
        bucket += 1
    # Only the bucket that holds the k-th best is copied out and sorted, ascending: of its members the best k - before
    # survive.
    inside = _members(scaled, best, np.float32(-np.inf), bucket, counts[bucket])
    return inside[max(0, inside.shape[0] - (k - before))]


@inner(**INNER)
def _nucleus(scaled: Floats, weights: Floats, best: np.float32, kth: np.float32, top_p: np.float32) -> np.float32:
    """The last score, from the best down, before which the mass of those from ``kth`` on is less than ``top_p``."""
    masses, counts = np.zeros(BUCKETS, np.float64), np.zeros(BUCKETS, np.int64)
    for i in range(scaled.shape[0]):
        weights[i] = exp(scaled[i] - best)
    # A histogram of what top-k left, by mass and by count.
    for i in range(scaled.shape[0]):
        if scaled[i] >= kth:
            bucket = _bucket(scaled[i], best)
            masses[bucket] += weights[i]
            counts[bucket] += 1
    # The same walk by probability mass, in float64: thousands of small terms are added up.
    wanted = np.float64(top_p) * masses.sum()
    bucket, before, last = 0, 0.0, 0
    while bucket < BUCKETS - 1 and before + masses[bucket] < wanted:
        before += masses[bucket]
        last = bucket if counts[bucket] else last
        bucket += 1
    # Rounding may leave the last bucket empty.
    bucket = bucket if counts[bucket] else last
    # Within the last bucket go score by score, from the best down, until the mass is reached.
    inside = _members(scaled, best, kth, bucket, counts[bucket])
    place = inside.shape[0] - 1
    before += exp(inside[place] - best)
    while place > 0 and before < wanted:
        place -= 1
        before += exp(inside[place] - best)
    return inside[place]


@inner(**INNER)
def _members(scaled: Floats, best: np.float32, least: np.float32, bucket: int, count: int) -> Floats:
    """What lies in ``bucket`` and is not below ``least``, ascending."""
    members = np.empty(count, np.float32)
    place = 0
    for i in range(scaled.shape[0]):
        if scaled[i] >= least and _bucket(scaled[i], best) == bucket and place < count:
            members[place] = scaled[i]
            place += 1
    members = members[:place]
    _sort(members)
    return members


@inner(**INNER)
def _sort(values: Floats) -> None:
    """Ascending, in place, by shrinking gaps; numpy's own sort takes ten times as long to compile."""
    gap = 1
    while 3 * gap + 1 < values.shape[0]:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, values.shape[0]):
            value, place = values[i], i
            while place >= gap and values[place - gap] > value:
                values[place] = values[place - gap]
                place -= gap
            values[place] = value
        gap //= 3


@inner(**INNER)
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


@inner(**INNER)
def _mix(x: np.uint32) -> np.uint32:
    # The finaliser of MurmurHash3: every bit of the input moves half of the bits of the output.
    x ^= x >> np.uint32(16)
    x = np.uint32(x * np.uint32(0x85EBCA6B))
    x ^= x >> np.uint32(13)
    x = np.uint32(x * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@inner(**INNER)
def _gumbel(token: np.uint32, first: np.uint32, second: np.uint32) -> np.float32:
    """See ``reference.gumbel``, bit for bit up to the logarithms' last places."""
    x = _mix(np.uint32(token * GOLDEN) ^ first)
    x = _mix(np.uint32(x + second))
    # 23 random bits, shifted by a half so that neither 0 nor 1 comes out, whose double logarithm would be infinite.
    uniform = (np.float32(x >> np.uint32(9)) + np.float32(0.5)) * np.float32(2.0**-23)
    return -np.float32(np.log(-np.float32(np.log(uniform))))
