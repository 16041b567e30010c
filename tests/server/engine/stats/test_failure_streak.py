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


def test_folders_of_the_machine_are_not_told() -> None:
    streak = FailureStreak("merging")
    for _ in range(2):
        streak.failed(OSError(24, "Too many open files", "/srv/models of us/mine/weights.safetensors"))
    assert streak.reason is not None and "/srv" not in streak.reason and "/mine" not in streak.reason
    assert "Too many open files" in streak.reason and "weights.safetensors" in streak.reason
    for _ in range(2):
        streak.failed(RuntimeError("1/2 of and/or; /etc/x.json"))
    assert streak.reason.endswith("RuntimeError: 1/2 of and/or; .../x.json")
