"""The numbers at an axis of a chart in the terminal: round ones, and no more of them than have room."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from typing import Final, NamedTuple

_GREATEST: Final = sys.float_info.max


class Scale(NamedTuple):
    """A range of values along an axis, at least a little wide; logarithmic if `log`."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value is: 0 at the low end, 1 at the high end."""
        if self.log:
            # Of the quotient of the logarithms: the quotient of the values may overflow.
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        # Halves, because the range of doubles is twice the greatest.
        return (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)


def scale_of(low: float, high: float, *, log: bool = False) -> Scale:
    """A scale from the least of the values to the greatest; around the only one if there is one."""
    if log:
        if high > low * 1.0001:
            return Scale(low, high, log=True)
        return Scale(low / 2 or low, min(2 * high, _GREATEST), log=True)
    if high / 2 - low / 2 > max(abs(low), abs(high)) * 1e-9:
        return Scale(low, high)
    margin = max(abs(low) * 0.1, 1e-300) if low else 1.0
    return Scale(max(low - margin, -_GREATEST), min(high + margin, _GREATEST))


def ticks(scale: Scale, number: int) -> list[float]:
    """At most `number` (at least 2) round values within the scale."""
    if scale.log:
        return _powers(scale, number)
    return _multiples(scale.low, scale.high, number)


_ROUND: Final = (Decimal(1), Decimal(2), Decimal("2.5"), Decimal(5))


def _multiples(low: float, high: float, number: int) -> list[float]:
    """Multiples of a step of 1, 2, 2.5 or 5 times a power of ten."""
    # Decimals, so that three steps of 0.1 are 0.3, and nothing is too large or too small.
    with localcontext(Context(prec=40)):
        least, greatest = Decimal(low), Decimal(high)
        power = ((greatest - least) / number).adjusted()
        for step in (mantissa.scaleb(exponent) for exponent in range(power, power + 3) for mantissa in _ROUND):
            first, last = math.ceil(least / step), math.floor(greatest / step)
            if 0 < last - first + 1 <= number:
                return [float(count * step) for count in range(first, last + 1)]
    return [low, high]


def _powers(scale: Scale, number: int) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few; round multiples within one decade."""
    low, high = math.log10(scale.low), math.log10(scale.high)
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first >= 2:
        stride = math.ceil((last - first + 1) / number)
        return [10.0**exponent for exponent in range(first, last + 1, stride)]
    between = [
        mantissa * 10.0**exponent
        for exponent in range(math.floor(low), math.floor(high) + 1)
        for mantissa in (1.0, 2.0, 5.0)
        if low - 1e-9 <= math.log10(mantissa) + exponent <= high + 1e-9
    ]
    return between if 2 <= len(between) <= number else _multiples(scale.low, scale.high, number)


_THOUSANDS: Final = ("", "k", "M", "G", "T")


def tick_texts(values: Sequence[float]) -> list[str]:
    """The values as short as they can be told apart; all in one way."""
    greatest = max((abs(value) for value in values), default=0.0)
    least = min((abs(value) for value in values if value), default=1.0)
    if 10_000 <= greatest < 1e15 and all(value == int(value) for value in values):
        power = int(math.log10(greatest)) // 3
        short = _decimals([value / 1000.0**power for value in values], range(4))
        if short is not None:
            return [text + _THOUSANDS[power] if float(text) else "0" for text in short]
        return _exponents(values)
    if (greatest < 1e6 and least >= 1e-4) or not greatest:
        found = _decimals(values, range(7))
        if found is not None:
            return found
    return _exponents(values)


def _decimals(values: Sequence[float], digits: range) -> list[str] | None:
    """With so few decimals that each is exact to a part of what is between them, or None if these do not suffice."""
    for places in digits:
        texts = [f"{value:.{places}f}" for value in values]
        if all(
            abs(float(text) - value) <= 1e-9 * max(abs(value), 1e-9) for text, value in zip(texts, values, strict=True)
        ):
            return texts
    return None


def _exponents(values: Sequence[float]) -> list[str]:
    for places in range(6):
        texts = [f"{value:.{places}e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e") for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [f"{value:g}" for value in values]
