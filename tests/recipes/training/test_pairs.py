import numpy as np
import pytest

from ladle.recipes.training.candidate_pool import Candidate
from ladle.recipes.training.pairs import Scale, select_pairs


def _candidate(prompt: str, token: int, rewards: tuple[float, ...], logprob: float = -1.0) -> Candidate:
    return Candidate(prompt, "plain", (token,), str(token), logprob, rewards)


UNIT = Scale(np.zeros(2), np.ones(2))


def test_scale_standardises(random: np.random.Generator) -> None:
    pool = [_candidate("p", i, tuple(random.normal(3.0, 5.0, size=2))) for i in range(50)]
    z = Scale.of(pool).z([candidate.rewards for candidate in pool])
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=0), 1.0, atol=1e-12)


def test_a_constant_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="rewards.1: the reward is 2 for each of the 4 answers"):
        Scale.of([_candidate("p", i, (float(i), 2.0)) for i in range(4)])


def test_pairs_follow_the_combined_reward() -> None:
    # h = .7 r0 + .3 r1: 7.0, 3.0, 5.0, 6.7
    pool = [_candidate("p", i, r) for i, r in enumerate([(10.0, 0.0), (0.0, 10.0), (5.0, 5.0), (7.0, 6.0)])]
    (selected,) = select_pairs(pool, UNIT, [0.7, 0.3], pairs=2, implausible=0.0)
    assert [c.text for c in selected.winners] == ["0", "3"]
    assert [c.text for c in selected.losers] == ["1", "2"]
    (other,) = select_pairs(pool, UNIT, [0.0, 1.0], pairs=1, implausible=0.0)
    assert (other.winners[0].text, other.losers[0].text) == ("1", "0")


def test_best_beats_worst_for_random_pools(random: np.random.Generator) -> None:
    pool = [_candidate(f"p{i % 4}", i, tuple(random.normal(size=2))) for i in range(40)]
    weights = random.dirichlet([1.0, 1.0])
    for selected in select_pairs(pool, UNIT, weights, pairs=2, implausible=0.0):
        h = {c.tokens: float(np.dot(c.rewards, weights)) for c in pool if c.prompt == selected.prompt}
        ordered = sorted(h.values())
        assert [h[c.tokens] for c in selected.winners] == ordered[::-1][:2]
        assert [h[c.tokens] for c in selected.losers] == ordered[:2]


def test_implausible_texts_may_lose_but_never_win() -> None:
    pool = [_candidate("p", i, (float(i), 0.0), logprob=-9.0 if i in (0, 9) else -1.0) for i in range(10)]
    (selected,) = select_pairs(pool, UNIT, [1.0, 0.0], pairs=1, implausible=0.25)
    assert selected.winners[0].text == "8"
    assert selected.losers[0].text == "0"


def test_equal_texts_count_once_and_a_draw_is_no_pair() -> None:
    twins = [_candidate("p", 1, (5.0, 0.0)), _candidate("p", 1, (5.0, 0.0)), _candidate("p", 2, (1.0, 0.0))]
    (selected,) = select_pairs(twins, UNIT, [1.0, 0.0], pairs=2, implausible=0.0)
    assert len(selected.winners) == len(selected.losers) == 1
    drawn = [_candidate("p", 1, (5.0, 0.0)), _candidate("p", 2, (5.0, 9.0))]
    assert select_pairs(drawn, UNIT, [1.0, 0.0], pairs=1, implausible=0.0) == []
