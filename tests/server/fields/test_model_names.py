"""The ``model`` string parses back to what it was made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.merging.exceptions import InputError
from ladle.server.fields.model_names import ModelName

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
WEIGHTS = st.floats(allow_nan=False, allow_infinity=False)
MODELS = st.builds(
    ModelName,
    family=NAMES,
    method=st.none() | NAMES,
    preference=st.dictionaries(NAMES, WEIGHTS, max_size=4).map(lambda pairs: tuple(pairs.items())),
)


@given(MODELS)
def test_round_trip(model: ModelName) -> None:
    assert ModelName.parse(str(model)) == model


@given(st.text(max_size=40))
def test_anything_else_is_an_input_error(text: str) -> None:
    try:
        model = ModelName.parse(text)
    except InputError as error:
        assert error.field == "model"
    else:
        assert ModelName.parse(str(model)) == model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", ModelName("demo")),
        ("demo/bone_soup", ModelName("demo", "bone_soup")),
        ("demo@positive=.7,concise=3e-1", ModelName("demo", None, (("positive", 0.7), ("concise", 0.3)))),
        ("demo/base@ a = 1. , b=+2", ModelName("demo", "base", (("a", 1.0), ("b", 2.0)))),
        ("demo@a=-1", ModelName("demo", None, (("a", -1.0),))),  # whether it makes sense is for the family to say
    ],
)
def test_forms(text: str, expected: ModelName) -> None:
    assert ModelName.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["demo@a=0x1", "demo@a=1_0", "demo@a=١", "demo@a=1,", "demo@=1", "@a=1", "/base", "demo/"]
)
def test_refusals(text: str) -> None:
    with pytest.raises(InputError, match="model"):
        ModelName.parse(text)
