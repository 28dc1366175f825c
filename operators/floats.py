"""JSON numbers in decimal to int64 and float64, correctly rounded: compiled.

Method of the floats: W. D. Clinger, "How to read floating point numbers accurately" (1990) where both parts
are exact, else D. Lemire, "Number parsing at a gigabyte per second" (2021), whose 128-bit table of powers of
five settles every case of up to 19 digits (N. Mushtak, D. Lemire, "Fast number parsing without fallback", 2023).
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint64
from numpy.typing import NDArray

from operators.compiled import kernel, piece
from operators.simd import bits_to_float, digit_mask, leading_zeros, load_word, multiply_high, trailing_zeros

FAILED = -1
"""Position that says: this lane does not take it."""

_EXPONENT_MIN = -342
_EXPONENT_MAX = 308
_DIGITS_MAX = 19
_VECTOR = 32
_EXACT_MAX = 1 << 53

_TEN = np.array([10**i for i in range(20)], np.uint64)
_TEN_EXACT = np.array([10.0**i for i in range(23)], np.float64)


def _powers_of_five() -> NDArray[np.uint64]:
    """uint64 (651, 2): upper and lower half of 5^q for q from -342 to 308, scaled to 128 bits."""
    rows = []
    for q in range(_EXPONENT_MIN, _EXPONENT_MAX + 1):
        power = 5 ** abs(q)
        bits = power.bit_length()
        if q >= 0:
            scaled = power << 128 >> bits
        elif q >= -27:
            scaled = (1 << (bits + 127)) // power + 1
        else:
            scaled = (1 << (2 * bits + 128)) // power + 1
            scaled >>= scaled.bit_length() - 128
        rows.append((scaled >> 64, scaled & 0xFFFF_FFFF_FFFF_FFFF))
    return np.array(rows, np.uint64)


_FIVE = _powers_of_five()


@piece
def _eight_digits(word):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Value of 8 digits, one a byte as 0 to 9, the first in the lowest byte."""
    word = word * uint64(10) + (word >> uint64(8))
    low = (word & uint64(0x000000FF000000FF)) * uint64(0x000F424000000064)
    high = ((word >> uint64(16)) & uint64(0x000000FF000000FF)) * uint64(0x0000271000000001)
    return (low + high) >> uint64(32)


@piece
def first_digits(data, at, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Value of the 1 to 8 digits from `at`."""
    word = load_word(data, at) ^ uint64(0x3030303030303030)
    return _eight_digits(word << uint64(64 - 8 * count))


@piece
def _digits(data, at, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Value of the 1 to 19 digits from `at`."""
    if count <= 8:
        return first_digits(data, at, count)
    last = first_digits(data, at + count - 8, 8)
    if count <= 16:
        return first_digits(data, at, count - 8) * uint64(100_000_000) + last
    middle = first_digits(data, at + count - 16, 8)
    head = first_digits(data, at, count - 16)
    return (head * uint64(100_000_000) + middle) * uint64(100_000_000) + last


@piece
def _subnormal(mantissa, shift):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    if shift >= 64:
        return uint64(0)
    mantissa >>= uint64(shift)
    return (mantissa + (mantissa & uint64(1))) >> uint64(1)


@kernel
def eisel_lemire(digits, exponent):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Bits of the float64 nearest to digits * 10^exponent, ties to even; those of infinity if it overflows.

    digits: uint64 above 0; exponent: int64 from -342 to 308.
    """
    zeros = leading_zeros(digits)
    digits <<= uint64(zeros)
    row = exponent - _EXPONENT_MIN
    upper = multiply_high(digits, _FIVE[row, 0])
    lower = digits * _FIVE[row, 0]
    if upper & uint64(0x1FF) == uint64(0x1FF):
        carry = multiply_high(digits, _FIVE[row, 1])
        lower += carry
        if lower < carry:
            upper += uint64(1)
    top = int64(upper >> uint64(63))
    mantissa = upper >> uint64(top + 9)
    power = ((217706 * exponent) >> 16) + 63 + top - zeros + 1023
    if power <= 0:
        # A mantissa that rounds up to 2^52 is the smallest normal number, and its bits say so by themselves.
        return _subnormal(mantissa, 1 - power)
    halfway = lower <= uint64(1) and -4 <= exponent <= 23 and mantissa & uint64(3) == uint64(1)
    if halfway and mantissa << uint64(top + 9) == upper:
        mantissa &= ~uint64(1)
    mantissa = (mantissa + (mantissa & uint64(1))) >> uint64(1)
    if mantissa >= uint64(1 << 53):
        mantissa = uint64(1 << 52)
        power += 1
    if power >= 0x7FF:
        return uint64(0x7FF << 52)
    return (mantissa & uint64((1 << 52) - 1)) | (uint64(power) << uint64(52))


@piece
def _exponent(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(exponent, end) of the 1 to 3 digits and their sign behind an `e`."""
    negative = data[at] == ord("-")
    if negative or data[at] == ord("+"):
        at += 1
    begin = at
    exponent = int64(0)
    while at - begin < 4 and ord("0") <= data[at] <= ord("9"):
        exponent = exponent * 10 + int64(data[at]) - ord("0")
        at += 1
    if at == begin or at - begin > 3:
        at = FAILED
    return (-exponent if negative else exponent), at


@piece
def number_shape(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place of the first digit, whole digits, fraction digits, exponent, end) of the JSON number at `at`.

    The end is FAILED for anything else, for 32 characters before the exponent and for an exponent of over 3 digits.
    The number is written as an integer if its end is first digit + whole digits.
    """
    begin = at + int64(data[at] == ord("-"))
    mask = digit_mask(data, begin)
    whole = trailing_zeros(~mask)
    end = begin + whole
    fraction = int64(0)
    exponent = int64(0)
    good = whole == 1 or (whole > 1 and data[begin] != ord("0"))
    if data[end] == ord("."):
        fraction = trailing_zeros(~(mask >> uint64(whole + 1)))
        good = good and fraction > 0
        end += 1 + fraction
    good = good and end - begin < _VECTOR
    if good and data[end] | 0x20 == ord("e"):
        exponent, end = _exponent(data, end + 1)
    return begin, whole, fraction, exponent, (end if good else FAILED)


@piece
def _significant(data, begin, whole, fraction):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(all digits of the number as one uint64, whether they fit)."""
    point = begin + whole
    if whole + fraction <= _DIGITS_MAX:
        digits = _digits(data, begin, whole)
        if fraction > 0:
            digits = digits * _TEN[fraction] + _digits(data, point + 1, fraction)
        return digits, True
    if data[begin] != ord("0"):
        return uint64(0), False
    last = point + fraction
    at = point + 1
    while at < last and data[at] == ord("0"):
        at += 1
    count = last + 1 - at
    return _digits(data, at, count), count <= _DIGITS_MAX


@piece
def _scaled(digits, exponent):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """float64 nearest to digits * 10^exponent; infinity also where the table ends."""
    if digits <= uint64(_EXACT_MAX) and -22 <= exponent <= 22:
        exact = float64(int64(digits))
        return exact / _TEN_EXACT[-exponent] if exponent < 0 else exact * _TEN_EXACT[exponent]
    if digits == uint64(0):
        return 0.0
    if exponent < _EXPONENT_MIN or exponent > _EXPONENT_MAX:
        return np.inf
    return bits_to_float(eisel_lemire(digits, exponent))


@piece
def parse_float(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(end, value) of the JSON number at `at`; the end is FAILED where this lane does not take it.

    Taken: up to 19 significant digits, finite, and an integer only within +-2^53. `-0` is 0.0, `-0.0` is -0.0.
    """
    begin, whole, fraction, exponent, end = number_shape(data, at)
    if end == FAILED:
        return FAILED, 0.0
    digits, fits = _significant(data, begin, whole, fraction)
    integer = end == begin + whole
    if not fits or (integer and digits > uint64(_EXACT_MAX)):
        return FAILED, 0.0
    value = _scaled(digits, exponent - fraction)
    if value == np.inf:
        return FAILED, 0.0
    if begin > at and not (integer and digits == uint64(0)):
        value = -value
    return end, value


@piece
def parse_integer(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(end, value) of the JSON integer at `at`, int64; the end is FAILED where it is none or does not fit.

    What stands behind it is not looked at: a fraction or an exponent fails there.
    """
    begin = at + int64(data[at] == ord("-"))
    whole = trailing_zeros(~digit_mask(data, begin))
    if whole == 0 or whole > _DIGITS_MAX or (whole > 1 and data[begin] == ord("0")):
        return FAILED, int64(0)
    digits = _digits(data, begin, whole)
    if digits > uint64((1 << 63) - 1):
        return FAILED, int64(0)
    value = int64(digits)
    return begin + whole, (-value if begin > at else value)
