"""What ``--rank`` and ``--keep`` become."""

import pytest

from ladle.clients.arguments import parse_rank
from ladle.clients.errors import UsageError
from ladle.clients.payload import generation_body, score_body


@pytest.mark.parametrize(
    ("by", "keep", "expected"),
    [
        (None, None, None),
        ("router", None, {"by": "router"}),
        ("explicit", 2, {"by": "explicit", "keep": 2}),
        ("ask=Is 1 = 1?", 3, {"by": {"ask": "Is 1 = 1?"}, "keep": 3}),
        (r"vote=Answer: (\d+)", None, {"by": {"vote": r"Answer: (\d+)"}}),
        ("taste=sweet", None, {"by": "taste=sweet"}),
    ],
)
def test_flags(by: str | None, keep: int | None, expected: object) -> None:
    assert parse_rank(by, keep) == expected
    if expected is not None:
        body = generation_body("m", {"prompt": "x"}, {"rank": parse_rank(by, keep), "dynatemp_range": 0.5}, False)
        assert body["steering"] == {"rank": expected} and body["dynatemp_range"] == 0.5


def test_keep_needs_a_ranking() -> None:
    with pytest.raises(UsageError, match="--rank"):
        parse_rank(None, 2)


def test_a_question_scores_texts() -> None:
    body = score_body("m", "x", ["a"], {"ask": "Is it kind?"}, None)
    assert body["by"] == {"ask": "Is it kind?"}
