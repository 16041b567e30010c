"""Numbers in schemas. The grammar library reads them as doubles and writes integers of 64 bits, so a schema is narrowed
to what it keeps to exactly, or refused: an answer never breaks the schema as it was sent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Any

_MOST_INTEGER = 2**63 - 1024  # the largest integer of 64 bits that is a double
_MOST_NUMBER = 2**53  # beyond it ranges of decimals are not written
_LEAST_NUMBER = 1e-22  # nearer to zero they are not written, and not read as they are
_FINE = 1e-4  # an exclusive bound nearer to zero is taken for an inclusive one
_COUNTS = [f"{side}{of}" for side in ("min", "max") for of in ("Contains", "Items", "Length", "Properties")]
_MOST_COUNT = 10_000_000  # more than any answer is long


_Bound = Fraction | None


class NumberError(ValueError):
    """A number that cannot be kept to. ``keyword``: where it stands; ``value``: the number."""

    def __init__(self, keyword: str, value: Any, reason: str) -> None:
        super().__init__(reason)
        self.keyword = keyword
        # Python writes no integer of more than some thousand digits.
        huge = isinstance(value, int) and value.bit_length() > 4096
        self.value: object = f"an integer of {value.bit_length()} bits" if huge else value


def check_constant(keyword: str, value: Any, whole: bool = False) -> None:
    """Raise NumberError for a number anywhere in ``value`` that would be written as another one; ``whole``: integers
    are asked for, which have 64 bits."""
    for number in _numbers(value):
        if whole and abs(number) >= 2**63:
            raise NumberError(keyword, number, "a number within 64 bits, in a schema that asks for integers")
        if isinstance(number, float) and not math.isfinite(number):
            raise NumberError(keyword, number, "a number within the range of a double")
        if isinstance(number, float) and abs(number) > _MOST_NUMBER and Fraction(repr(number)) != Fraction(number):
            raise NumberError(keyword, number, "a number whose shortest decimal form is its value, or less than 2^53")
        if isinstance(number, float) and not _read_as_it_is(number):
            raise NumberError(keyword, number, "a number of at most 15 digits; this one would be written as another")
        if isinstance(number, int) and not _exact(number):
            reason = (
                "an integer that a double holds, such as any from -2^53 to 2^53; this one would be written as another"
            )
            raise NumberError(keyword, number, reason)


def counts(part: dict[str, Any]) -> None:
    """Write counts such as ``maxItems`` as integers; leave out limits that no answer reaches. Raises NumberError."""
    for keyword in _COUNTS:
        value = part.get(keyword)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue  # for the library to refuse
        if not value >= 0 or (value <= _MOST_COUNT and value != int(value)):
            raise NumberError(keyword, value, "a whole number from 0")
        if value > _MOST_COUNT:
            if keyword.startswith("min"):
                raise NumberError(keyword, value, f"at most {_MOST_COUNT}; no answer is longer")
            del part[keyword]
        else:
            part[keyword] = int(value)


def bounds(part: dict[str, Any]) -> None:
    """Narrow ``minimum`` and its kin, and check ``multipleOf``. Raises NumberError."""
    for end in ("minimum", "maximum"):
        exclusive = f"exclusive{end.capitalize()}"
        # Before draft 6, and in OpenAPI 3.0, it says of the other keyword how that is meant.
        if isinstance(part.get(exclusive), bool) and part.pop(exclusive) and end in part:
            part[exclusive] = part.pop(end)
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"):
        value = part.get(keyword)
        if keyword in part and not _is_number(value):
            raise NumberError(keyword, value, "a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise NumberError(keyword, value, "a number within the range of a double")
    factor: Any = part.get("multipleOf")
    if _is_number(factor) and not (_exact(factor) if isinstance(factor, int) else _read_as_it_is(factor)):
        raise NumberError("multipleOf", factor, "a number that a double holds, of at most 15 digits")
    if _kind(part) == "integer":
        _integer_bounds(part)
    else:
        _number_bounds(part)
    if _is_number(factor) and factor > 0:
        _require_multiple(part, factor)


def _require_multiple(part: dict[str, Any], factor: int | float) -> None:
    """Raise NumberError where no multiple lies between the bounds: the library sees that while an answer is written."""
    low = _tightest(part, "minimum", "exclusiveMinimum", 0)
    high = _tightest(part, "maximum", "exclusiveMaximum", 0)
    if low is None or high is None:
        return
    step = Fraction(repr(factor))
    step = Fraction(step.numerator) if _kind(part) == "integer" else step
    first = math.ceil(low / step) * step
    first += step if first == low and _strict(part, "exclusiveMinimum", low) else 0
    if first > high or (first == high and _strict(part, "exclusiveMaximum", high)):
        raise NumberError("multipleOf", factor, "a number of which some multiple lies between the bounds")


def _integer_bounds(part: dict[str, Any]) -> None:
    low = _tightest(part, "minimum", "exclusiveMinimum", 1)
    high = _tightest(part, "maximum", "exclusiveMaximum", -1)
    if low is None and high is None:
        return
    at_least = None if low is None else max(_up(math.ceil(low)), -_MOST_INTEGER)
    at_most = None if high is None else min(_down(math.floor(high)), _MOST_INTEGER)
    if at_most is not None and at_most <= -_MOST_NUMBER and at_least is None:
        at_least = -_MOST_INTEGER
    contradictory = low is not None and high is not None and math.ceil(low) > math.floor(high)
    small = all(bound is None or abs(bound) < _MOST_NUMBER for bound in (low, high))
    if not (contradictory and small):  # else it is for the library to say
        beyond = at_least is not None and at_least > _MOST_INTEGER
        if beyond or (at_most is not None and at_most < -_MOST_INTEGER) or _empty(at_least, at_most):
            keyword = _named(part, "minimum" if at_least is not None and at_least > 0 else "maximum")
            reason = "bounds between which there are integers that a double holds, from -2^63 to 2^63"
            raise NumberError(keyword, part[keyword], reason)
        _replace(part, at_least, at_most)


def _number_bounds(part: dict[str, Any]) -> None:
    low = _tightest(part, "minimum", "exclusiveMinimum", 0)
    high = _tightest(part, "maximum", "exclusiveMaximum", 0)
    if low is None and high is None:
        return
    for bound, keyword in ((low, "minimum"), (high, "maximum")):
        wrong_way = bound is not None and (bound > _MOST_NUMBER if keyword == "minimum" else bound < -_MOST_NUMBER)
        if wrong_way:
            keyword = _named(part, keyword)
            raise NumberError(keyword, part[keyword], "a bound from -2^53 to 2^53 for numbers that need not be whole")
    # Two keywords for one end are written as one.
    changed = any(
        _is_number(part.get(f"exclusive{end.capitalize()}")) and _is_number(part.get(end))
        for end in ("minimum", "maximum")
    )
    if low is not None and low < -_MOST_NUMBER:
        low, changed = Fraction(-_MOST_NUMBER), True
    if high is not None and high > _MOST_NUMBER:
        high, changed = Fraction(_MOST_NUMBER), True
    least = Fraction(_LEAST_NUMBER)
    if low is not None and 0 < abs(low) < least:
        low, changed = (least if low > 0 else Fraction(0)), True
    if high is not None and 0 < abs(high) < least:
        high, changed = (Fraction(0) if high > 0 else -least), True
    strict_low, strict_high = _strict(part, "exclusiveMinimum", low), _strict(part, "exclusiveMaximum", high)
    fine = any(bound is not None and 0 < abs(bound) < _FINE for bound in (low, high))
    if (strict_low or strict_high) and (fine or _taken_for_inclusive(low, high, strict_low, strict_high)):
        ends = low, high
        low, high = _inside(low, high, strict_low, strict_high)
        if (strict_low and low == ends[0]) or (strict_high and high == ends[1]):
            low, high = Fraction(1), Fraction(0)  # too near to each other
        strict_low, strict_high, changed = False, False, True
    if changed:
        if _empty(low, high) or (low == high and (strict_low or strict_high)):
            keyword = _named(part, "minimum" if low is not None and low > 0 else "maximum")
            raise NumberError(keyword, part[keyword], "bounds between which there are numbers that can be written")
        _replace(part, _plain(low), _plain(high))
        if strict_low:
            part["exclusiveMinimum"] = part.pop("minimum")
        if strict_high:
            part["exclusiveMaximum"] = part.pop("maximum")
    _readable_bounds(part)


def _readable_bounds(part: dict[str, Any]) -> None:
    """Move bounds that the library would read as other numbers inward. Raises NumberError."""
    for keyword, rounding in (("inimum", ROUND_CEILING), ("aximum", ROUND_FLOOR)):
        for name in (f"m{keyword}", f"exclusiveM{keyword}"):
            value = part.get(name)
            if not isinstance(value, float) or _read_as_it_is(value):
                continue
            places = range(15, 0, -1)
            candidates = (float(Context(count, rounding).create_decimal_from_float(value)) for count in places)
            part[name] = next(filter(_read_as_it_is, candidates))
    if _empty(_tightest(part, "minimum", "exclusiveMinimum", 0), _tightest(part, "maximum", "exclusiveMaximum", 0)):
        keyword = _named(part, "minimum")
        raise NumberError(keyword, part[keyword], "bounds between which there are numbers that can be written")


def _strict(part: dict[str, Any], keyword: str, bound: _Bound) -> bool:
    """Whether ``bound`` is the one of an exclusive ``keyword``, which numbers may not reach."""
    return _is_number(part.get(keyword)) and bound == _fraction(part[keyword])


def _taken_for_inclusive(low: _Bound, high: _Bound, strict_low: bool, strict_high: bool) -> bool:
    """Whether the library would let an exclusive bound itself pass: a whole one, the other end less than 1 away."""
    if low is None or high is None or not 0 < high - low < 1:
        return False
    return (strict_low and low.denominator == 1 and low >= 0) or (strict_high and high.denominator == 1 and high <= 0)


def _inside(low: _Bound, high: _Bound, strict_low: bool, strict_high: bool) -> tuple[_Bound, _Bound]:
    """Bounds a thousandth further in where they are exclusive, or a little more, in 15 digits."""
    ends = [bound for bound in (low, high) if bound is not None]
    width = abs(ends[-1] - (ends[0] if len(ends) > 1 else 0)) / 1000
    if low is not None and strict_low:
        low = _rounded(low + width, ROUND_CEILING)
    if high is not None and strict_high:
        high = _rounded(high - width, ROUND_FLOOR)
    return low, high


def _rounded(bound: Fraction, rounding: str) -> Fraction:
    return Fraction(float(Context(15, rounding).create_decimal_from_float(float(bound))))


def _kind(part: dict[str, Any]) -> str:
    kinds = part.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return "integer" if "integer" in kinds and "number" not in kinds else "number"


def _tightest(part: dict[str, Any], inclusive: str, exclusive: str, step: int) -> Fraction | None:
    """The bound that both keywords make; an exclusive one of integers is moved by ``step`` to the next integer."""
    bounds = [_fraction(part[inclusive])] if _is_number(part.get(inclusive)) else []
    if _is_number(part.get(exclusive)):
        bound = _fraction(part[exclusive])
        if step > 0:
            bound = Fraction(math.floor(bound) + 1)
        elif step < 0:
            bound = Fraction(math.ceil(bound) - 1)
        bounds.append(bound)
    if not bounds:
        return None
    return max(bounds) if inclusive == "minimum" else min(bounds)


def _replace(part: dict[str, Any], low: Any, high: Any) -> None:
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if _is_number(part.get(keyword)):
            del part[keyword]
    if low is not None:
        part["minimum"] = low
    if high is not None:
        part["maximum"] = high


def _named(part: dict[str, Any], keyword: str) -> str:
    """The keyword of a pair that a schema has, the other pair's if it has neither."""
    order = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    order = order if keyword == "minimum" else order[2:] + order[:2]
    return next(name for name in order if _is_number(part.get(name)))


def _plain(bound: Fraction | None) -> int | float | None:
    if bound is None:
        return None
    return int(bound) if bound.denominator == 1 else float(bound)


def _empty(low: Any, high: Any) -> bool:
    return low is not None and high is not None and bool(low > high)


def _up(number: int) -> int:
    """The least integer from ``number`` on that a double holds."""
    return number if _exact(number) else -_down(-number)


def _down(number: int) -> int:
    if abs(number) >= 2**1000:
        return number
    value = float(number)
    return int(value if value <= number else math.nextafter(value, -math.inf))


def _exact(number: int) -> bool:
    return abs(number) <= _MOST_NUMBER or (abs(number) <= _MOST_INTEGER and int(float(number)) == number)


def _read_as_it_is(number: float) -> bool:
    """Whether the library reads ``number`` as what it is: its reader takes the digits for a double, which is exact up
    to 2^53, and multiplies or divides it by a power of ten, which is exact up to 10^22."""
    _, digits, exponent = Decimal(repr(number)).as_tuple()
    assert isinstance(exponent, int)
    read = float(int("".join(map(str, digits))))
    power = float(f"1e{min(abs(exponent), 308)}")
    read = read * power if exponent >= 0 else read / power
    return abs(exponent) <= 308 and read == abs(number)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fraction(value: int | float) -> Fraction:
    return Fraction(value)


def _numbers(value: Any) -> Iterator[int | float]:
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
        elif _is_number(part):
            yield part
