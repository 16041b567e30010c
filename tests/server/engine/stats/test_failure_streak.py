"""One failure is bad luck; two in a row say that something is broken."""

from ladle.server.engine.stats.failure_streak import FORGOTTEN_S, FailureStreak


def test_a_streak_and_its_end() -> None:
    streak = FailureStreak("merging")
    assert streak.reason is None
    streak.failed(OSError("the disk is gone\nand more"))
    assert streak.reason is None
    streak.failed(OSError("the disk is gone\nand more"))
    assert streak.reason == "merging failed 2 times in a row, the last time with OSError: the disk is gone"
    streak.succeeded()
    assert streak.reason is None
    streak.failed(KeyError())
    assert streak.reason is None


def test_it_is_forgotten_until_the_next_failure() -> None:
    now = 100.0
    streak = FailureStreak("merging", lambda: now)
    for _ in range(3):
        streak.failed(KeyError())
    now += FORGOTTEN_S + 1
    assert streak.reason is None
    streak.failed(KeyError())
    assert streak.reason == "merging failed 4 times in a row, the last time with KeyError"
