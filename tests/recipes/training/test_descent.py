import pytest

from ladle.recipes.training.descent import schedule


def test_schedule_rises_then_falls() -> None:
    factors = [schedule(step, 10, 0.2) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[3:] == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
