"""What the engine counts of its steps: against a plain recount of the same numbers."""

import random
from bisect import bisect_right
from pathlib import Path

import pytest
from seeds import fresh_seed
from tiny_engine import Collector, build, drain, family_of, make_request

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import Family
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.stats.step_counts import Tally

FULL = "bone-positive"


def test_a_tally_counts_what_is_at_most_each_bound() -> None:
    rng = random.Random(fresh_seed())
    bounds = sorted(rng.uniform(0, 10) for _ in range(rng.randint(1, 8)))
    # Values that are bounds belong to them.
    values = [rng.choice([rng.uniform(-1, 12), *bounds]) for _ in range(rng.randint(0, 200))]
    tally = Tally(bounds)
    for value in values:
        tally.add(value)
    seen = tally.seen()
    assert seen.bounds == tuple(bounds) and seen.total == pytest.approx(sum(values))
    for index, bound in enumerate(bounds):
        assert sum(seen.counts[: index + 1]) == bisect_right(sorted(values), bound)
    assert sum(seen.counts) == len(values)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of(tmp_path_factory.mktemp("family"), seed=3)


def test_steps_are_counted(family: Family) -> None:
    """Requests of one preference count once, those that name weights by their weights."""
    engine, collector = build(family), Collector()
    objectives = list(family.objectives)
    preferences = [{objectives[0]: 1.0}, {objectives[0]: 3.0}, {objectives[1]: 1.0}]
    options = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    prompt = tuple(range(5, 12))
    for number, preference in enumerate(preferences):
        plan = resolve(family, Steering(method="bone_soup", preference=preference))
        engine.submit(GenerationRequest(f"p{number}", prompt, plan, options), collector)
    for name in ("plain", "too"):
        engine.submit(make_request(name, prompt, max_tokens=3, temperature=0.0, ignore_eos=True), collector)
    rows = []
    while engine.step():
        rows.append(engine.stats().step_rows)
        assert engine.stats().distinct_preferences <= 3
    stats = engine.stats()
    assert stats.steps == len(rows) >= 3
    assert stats.rows_by_step is not None and stats.step_seconds is not None and stats.preferences is not None
    assert stats.rows_by_step.total == sum(rows) and sum(stats.rows_by_step.counts) == len(rows)
    assert sum(stats.step_seconds.counts) == len(rows) and stats.step_seconds.total > 0
    # Two preferences, one of them given in two scales, and the plain base.
    assert sum(stats.preferences.counts[2:]) > 0 and sum(stats.preferences.counts[3:]) == 0
    for outputs in collector.outputs.values():
        assert outputs[0].queued_s is not None and outputs[0].queued_s >= 0
        assert all(output.queued_s is None for output in outputs[1:])


def test_merged_sets_are_counted(tmp_path: Path) -> None:
    """A set is missed once and hit by everybody who finds it there."""
    engine, collector = build(family_of(tmp_path, seed=4, full=[FULL])), Collector()
    try:
        for number, weight in enumerate((0.25, 0.25, 0.75, 0.25)):
            engine.submit(make_request(f"r{number}", range(5, 30 + number), {FULL: weight}), collector)
        drain(engine)
        first = engine.stats().merges
        assert (first.misses, first.hits, first.failures) == (2, 2, 0)
        assert first.seconds is not None and sum(first.seconds.counts) == 2 and first.seconds.total > 0
        assert 0 < first.used <= first.budget
        engine.submit(make_request("again", range(5, 30), {FULL: 0.75}), collector)
        drain(engine)
        assert (engine.stats().merges.misses, engine.stats().merges.hits) == (2, 3)
    finally:
        engine.store.close()
