"""From a pool of rewarded candidates to the preference pairs of one member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladle.recipes.rewards import combine
from ladle.recipes.training.candidate_pool import Candidate


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each objective's reward over the pool, float64 [objectives]: makes objectives
    comparable."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, pool: Sequence[Candidate], objectives: Sequence[str] = ()) -> Scale:
        """Measures a pool.

        Args:
            pool: candidates with their rewards.
            objectives: what these are called, for the message.

        Raises:
            ValueError: a reward is the same for every candidate, so there is nothing to learn from it.
        """
        rewards = np.array([candidate.rewards for candidate in pool], dtype=np.float64)
        std = rewards.std(axis=0)
        if not (std > 0).all():
            which = int(np.argmin(std))
            name = objectives[which] if objectives else which
            raise ValueError(
                f"rewards.{name}: the reward is {rewards[0, which]:g} for each of the {len(pool)} answers of the pool; "
                "allowed: one that differs between answers"
            )
        return cls(rewards.mean(axis=0), std)

    def z(self, rewards: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Standardised rewards, float64 [candidates, objectives]."""
        return (np.asarray(rewards, dtype=np.float64) - self.mean) / self.std


@dataclass(frozen=True)
class PromptPairs:
    """The pairs of one prompt: winner i is preferred to loser i."""

    prompt: str
    winners: tuple[Candidate, ...]
    losers: tuple[Candidate, ...]


def select_pairs(
    pool: Sequence[Candidate], scale: Scale, weights: Sequence[float] | np.ndarray, *, pairs: int, implausible: float
) -> list[PromptPairs]:
    """The best against the worst candidates of each prompt by h = weights . z, one row of h = B r (Bone Soup, arXiv
    2502.10762).

    Winners must be plausible: the `implausible` share of the pool with the lowest mean token log-probability under
    the base
    may lose but never wins, which keeps fluent text on the winning side (ours).

    Args:
        pool: candidates, those of a prompt in any order.
        scale: standardises the rewards.
        weights: reward weights of the member, [objectives].
        pairs: pairs a prompt; a prompt with too few candidates, or whose winner would not beat its loser, gives fewer.
        implausible: share in [0, 1).
    """
    h = combine([list(weights)], scale.z([candidate.rewards for candidate in pool]))[:, 0]
    threshold = np.quantile([candidate.token_logprob for candidate in pool], implausible)
    by_prompt: dict[str, list[int]] = {}
    for index, candidate in enumerate(pool):
        by_prompt.setdefault(candidate.prompt, []).append(index)
    selected = []
    for prompt, indices in by_prompt.items():
        # Sorting is stable, so ties fall to the candidate that came first; equal answers count once.
        distinct = {pool[i].tokens: i for i in reversed(indices)}
        ordered = sorted(sorted(distinct.values()), key=lambda i: -h[i])
        count = min(pairs, len(ordered) // 2)
        winners = [i for i in ordered if pool[i].token_logprob >= threshold][:count]
        losers = [i for i in reversed(ordered) if i not in winners][:count]
        kept = [(w, low) for w, low in zip(winners, losers, strict=False) if h[w] > h[low]]
        if kept:
            selected.append(PromptPairs(prompt, tuple(pool[w] for w, _ in kept), tuple(pool[low] for _, low in kept)))
    return selected
