"""The best mix under a bound, where next to nothing keeps it."""

import numpy as np

from ladle.merging.preferences.surface_search import best_mix

PLACE = np.array([0.55, 0.3])


def test_what_keeps_the_bound_is_found_where_nothing_to_begin_with_does() -> None:
    def evaluate(mixes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -mixes[:, 0], ((mixes - PLACE) ** 2).sum(axis=1)

    found = best_mix(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), evaluate, 1e-4)
    assert np.linalg.norm(found - PLACE) <= 0.01, "and not the point with the best score"
