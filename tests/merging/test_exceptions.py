"""Errors say what was wrong, what was probably meant, and what is allowed, in this order."""

import copy
import json

import pytest

from ladle.merging.exceptions import CodedText, InputError, code_of, did_you_mean


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            InputError("steering.method", "bone_soop", "fitted_soup, bone_soup, base"),
            "steering.method: 'bone_soop' is not allowed (did you mean 'bone_soup'?); "
            "allowed: fitted_soup, bone_soup, base",
        ),
        (
            InputError("steering.preference.concice", 1.0, "positive, concise (family demo)"),
            "steering.preference.concice: 1.0 is not allowed (did you mean 'concise'?); "
            "allowed: positive, concise (family demo)",
        ),
        (
            InputError("steering.method", "parm", "base, pad", "the family has no PBLoRA"),
            "steering.method: 'parm' is not allowed: the family has no PBLoRA; allowed: base, pad",
        ),
        (
            InputError("steering.terms", 0.0, reason="the weights of the sources cancel out"),
            "steering.terms: the weights of the sources cancel out (got 0.0)",
        ),
        (InputError("a", 1, "2", "why").at("b"), "b: 1 is not allowed: why; allowed: 2"),
        (InputError("top_p", 2, "numbers from 0 to 1"), "top_p: 2 is not allowed; allowed: numbers from 0 to 1"),
    ],
)  # fmt: skip
def test_messages(error: InputError, message: str) -> None:
    assert str(error) == message


def test_a_coded_text_is_a_text_and_keeps_its_code() -> None:
    text = CodedText("large", "the coefficients are large")
    assert text == "the coefficients are large" and json.dumps([text]) == '["the coefficients are large"]'
    assert code_of(text) == code_of(copy.deepcopy(text)) == "large"
    assert code_of("the coefficients are large") is None and code_of(None) is None


def test_nothing_is_guessed_from_afar() -> None:
    assert did_you_mean("rain", ["base", "mage"]) == "" and did_you_mean("base", ["base"]) == ""


@pytest.mark.parametrize("value", ["x" * 10_000_000, ["y" * 100] * 100_000, {"z": {"w" * 1_000_000: [0] * 1_000_000}}])
def test_of_a_huge_value_the_beginning_is_said(value: object) -> None:
    message = str(InputError("steering.method", value, "base, pad"))
    assert len(message) < 300 and "... is not allowed; allowed: base, pad" in message
    assert did_you_mean("base" * 1_000_000, ["base", "pad"]) == ""
