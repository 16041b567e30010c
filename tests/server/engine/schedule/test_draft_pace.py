"""How many tokens are worth being drafted."""

import pytest

from ladle.server.engine.schedule.draft_pace import DraftPace, worthwhile


def test_each_token_has_to_save_more_than_it_costs() -> None:
    assert worthwhile(1.0, 0.5, 4) == 4
    assert worthwhile(0.5, 0.3, 4) == 1  # 0.5 > 0.3, 0.25 is not
    assert worthwhile(0.8, 0.5, 9) == 3  # 0.8, 0.64, 0.512, 0.41
    assert worthwhile(0.2, 0.3, 4) == 0
    assert worthwhile(1.0, 1.0, 4) == 0
    assert worthwhile(0.9, 0.0, 0) == 0


def test_a_row_costs_what_steps_with_drafts_took_longer() -> None:
    pace = DraftPace()
    assert pace.row_cost(1) is None, "no step was seen"
    pace.note(1, 0, 0.010)
    assert pace.row_cost(1) == 0.1
    pace.note(1, 4, 0.014)
    assert abs(pace.row_cost(1) - 0.1) < 1e-9
    for _ in range(50):
        pace.note(1, 4, 0.030)
    assert abs(pace.row_cost(1) - 0.5) < 0.01
    assert pace.row_cost(16) is None, "another number of rows"


def test_now_and_then_a_step_goes_without() -> None:
    pace = DraftPace()
    pace.note(1, 0, 0.010)
    for _ in range(64):
        assert pace.row_cost(1) is not None
        pace.note(1, 2, 0.012)
    assert pace.row_cost(1) is None
    pace.note(1, 0, 0.010)
    assert pace.row_cost(1) is not None


def test_a_stall_says_little_and_a_slower_processor_is_believed() -> None:
    pace = DraftPace()
    pace.note(2, 0, 0.01)
    pace.note(2, 0, 5.0)
    assert pace.step(2) == pytest.approx(0.012)
    for _ in range(40):
        pace.note(2, 0, 0.05)
    assert pace.step(2) == pytest.approx(0.05, rel=0.01)
