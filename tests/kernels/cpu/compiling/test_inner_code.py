"""What only compiled code calls: what of it is compiled, and when."""

import numba
import numpy as np
import pytest
from numba.core import event

from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.compiling.inner_code import either, inner, late


@inner(**INNER)
def _twice(numbers):
    for i in range(numbers.shape[0]):
        numbers[i] *= 2


@inner(**INNER)
def _one_more(numbers):
    for i in range(numbers.shape[0]):
        numbers[i] += 1


_twice_late = late(_twice)
_twice_or_one_more = either(lambda numbers: numbers.dtype == numba.int64, _twice, _one_more)


class _Order(event.Listener):
    """The names of functions, in the order in which their compilation ended."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_start(self, event: event.Event) -> None:
        """Nothing."""

    def on_end(self, event: event.Event) -> None:
        self.names.append(event.data["dispatcher"].py_func.__name__)


def test_what_is_late_is_compiled_after_what_follows_it() -> None:
    @numba.njit
    def run(numbers):
        _twice_late((numbers,))
        _one_more(numbers)

    order, numbers = _Order(), np.arange(5, dtype=np.int32)
    with event.install_listener("numba:compile", order):
        run(numbers)
    assert [name for name in order.names if name.startswith("_")] == ["_one_more", "_twice"]
    assert numbers.tolist() == [1, 3, 5, 7, 9]  # and is run where it stands


def test_of_two_the_one_that_is_called_is_compiled() -> None:
    @numba.njit
    def run(numbers):
        _twice_or_one_more((numbers,))

    order, whole, real = _Order(), np.arange(3), np.arange(3.0)
    with event.install_listener("numba:compile", order):
        run(whole)
        assert "_one_more" not in order.names
        run(real)
    assert "_one_more" in order.names
    assert whole.tolist() == [0, 2, 4] and real.tolist() == [1, 2, 3]


def test_python_cannot_call_it() -> None:
    with pytest.raises(TypeError, match="_one_more can be called from compiled code only"):
        _one_more(np.arange(3))
