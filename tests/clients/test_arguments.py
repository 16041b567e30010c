"""What people type, as the SDK wants it."""

import pytest

from ladle.clients.arguments import parse_search
from ladle.clients.errors import UsageError


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (None, None),
        ("explicit", {"by": "explicit"}),
        ("implicit,until=16,draws=4,beam=2", {"by": "implicit", "until": 16, "draws": 4, "beam": 2}),
        ("likelihood, until=punctuation, draws=1-10", {"by": "likelihood", "until": "punctuation",
                                                       "draws": {"most": 10}}),
    ],
)  # fmt: skip
def test_a_search_in_words(words, meant):
    assert parse_search(words) == meant


@pytest.mark.parametrize(
    "words",
    ["", "until=3", "explicit,width=2", "explicit,draws=x", "explicit,draws=2,draws=3", "explicit,beam", ",beam=2"],
)
def test_what_is_no_search_is_refused(words):
    with pytest.raises(UsageError, match="search: "):
        parse_search(words)
