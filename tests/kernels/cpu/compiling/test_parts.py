"""Parts of compiled work side by side: each is done once, and what fails is told."""

from typing import Any

import numpy as np
import pytest

from ladle.kernels.cpu.compiling.compiler import INNER, compiled, one_at_a_time
from ladle.kernels.cpu.compiling.inner_code import either, inner
from ladle.kernels.cpu.compiling.parts import in_parts


@inner(**INNER)
def count_part(made: Any, added: Any, parts: int, part: int) -> None:
    if added[0] == part + 1:
        raise ValueError("this part fails")
    made[part] += parts


@inner(**INNER)
def whole(number: Any) -> Any:
    return number + 1


@inner(**INNER)
def fraction(number: Any) -> Any:
    return number / 2


counted = in_parts(count_part)
counted_up = either(lambda kind: str(kind) == "int64", whole, fraction)


@compiled()
def count(made: Any, added: Any, parts: int) -> None:
    counted((made, added, parts), parts)


@compiled()
def of_kind(number: Any) -> Any:
    return counted_up((number,))


def test_every_part_is_done_once_however_many_there_are() -> None:
    none = np.zeros(1, np.int64)
    for parts in (0, 1, 2, 3, 17, 200):
        made = np.zeros(parts, np.int64)
        with one_at_a_time:
            for _ in range(3):
                count(made, none, parts)
        assert made.tolist() == [3 * parts] * parts


def test_what_a_part_raises_is_told_once_all_have_ended() -> None:
    made = np.zeros(5, np.int64)
    with one_at_a_time, pytest.raises(RuntimeError, match="a part of a compiled loop failed"):
        count(made, np.array([3]), 5)
    assert made.tolist() == [5, 5, 0, 5, 5]


def test_of_two_functions_the_one_that_the_types_ask_for_is_compiled() -> None:
    assert of_kind(3) == 4
    assert not fraction.overloads
    assert of_kind(3.0) == 1.5


def test_what_compiled_code_calls_cannot_be_called_from_python() -> None:
    with pytest.raises(TypeError):
        whole(3)
