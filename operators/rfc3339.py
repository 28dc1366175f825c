"""RFC 3339 times to microseconds since the Unix epoch, twice: plainly, and compiled for the usual form.

Both take 1 to 9 digits of a second and cut them to microseconds, `T`, `t` or a space between date
and time, `Z`, `z` or an offset behind it, and second 60, which counts as the next second.
"""

from __future__ import annotations

import re
from datetime import date

import numpy as np
from numba import int64, uint64

from operators.compiled import piece
from operators.floats import FAILED, first_digits
from operators.simd import digit_mask, load_word, trailing_zeros

TIME_US_END = (date(2262, 1, 1) - date(1970, 1, 1)).days * 86_400_000_000
"""First time, in microseconds, that is not taken: nanosecond timestamps of 64 bits end in 2262."""

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_ZONELESS = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)?", re.ASCII)
_EPOCH_DAY = date(1970, 1, 1).toordinal()

_DIGITS = np.uint64(0b110_110_110_110_110_1111)
_DASHES = (np.uint64(0xFF0000FF00000000), np.uint64(ord("-") << 32 | ord("-") << 56))
_DAYS_BEFORE = np.array([0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365], np.int64)
_TO_US = np.array([10 ** (8 - digits) for digits in range(9)], np.uint64)


def lacks_zone(text: str) -> bool:
    """Whether the text is a date or a time that only wants an offset such as `Z`."""
    return _ZONELESS.fullmatch(text) is not None


def parse_time(text: str) -> int:
    """Microseconds since the Unix epoch of an RFC 3339 time from year 1 on; may be negative.

    Raises ValueError where the text has another form, and for a day, time of day or offset that does not exist.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("another form")
    year, month, day, hour, minute, second, fraction, sign, zone_hour, zone_minute = match.groups("0")
    if hour > "23" or minute > "59" or second > "60" or zone_hour > "23" or zone_minute > "59":
        raise ValueError("no such time of day")
    days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    zone = int(zone_hour) * 60 + int(zone_minute)
    minutes = days * 1440 + int(hour) * 60 + int(minute) + (zone if sign == "-" else -zone)
    return (minutes * 60 + int(second)) * 1_000_000 + int(fraction.ljust(6, "0")[:6])


@piece
def _pair(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    return int64(data[at]) * 10 + int64(data[at + 1]) - 11 * ord("0")


@piece
def _day(year, month, day):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Days since the Unix epoch; FAILED for a day that does not exist or a year outside 1970 to 2261."""
    leap = year & 3 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (1970 <= year < 2262 and 1 <= month <= 12):
        return FAILED
    before = _DAYS_BEFORE[month]
    if day < 1 or day > _DAYS_BEFORE[month + 1] - before + int64(leap and month == 2):
        return FAILED
    past = year - 1
    leaps = (past >> 2) - past // 100 + past // 400 - 477
    return (year - 1970) * 365 + leaps + before + int64(leap and month > 2) + day - 1


@piece
def _fraction_us(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(end, microseconds) of the 1 to 9 digits at `at`; the end is FAILED if they are not."""
    count = trailing_zeros(~digit_mask(data, at))
    if count == 0 or count > 9:
        return FAILED, int64(0)
    shown = min(count, 8)
    return at + count, int64(first_digits(data, at, shown) * _TO_US[shown] // uint64(100))


@piece
def _zone_minutes(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(end, minutes east of UTC) of the offset at `at`; the end is FAILED if it is none."""
    mark = data[at]
    if mark == ord("Z") or mark == ord("z"):
        return at + 1, int64(0)
    digits = digit_mask(data, at + 1) & uint64(0b11111) == uint64(0b11011)
    if not digits or data[at + 3] != ord(":") or not (mark == ord("+") or mark == ord("-")):
        return FAILED, int64(0)
    hours, minutes = _pair(data, at + 1), _pair(data, at + 4)
    if hours > 23 or minutes > 59:
        return FAILED, int64(0)
    zone = hours * 60 + minutes
    return at + 6, (-zone if mark == ord("-") else zone)


@piece
def parse_rfc3339(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(end, microseconds) of the time at `at`; the end is FAILED where it is none or outside 1970 to 2261."""
    between = data[at + 10] | 0x20
    digits = digit_mask(data, at) & uint64((1 << 19) - 1) == _DIGITS
    dashes = load_word(data, at) & _DASHES[0] == _DASHES[1]
    colons = data[at + 13] == ord(":") and data[at + 16] == ord(":")
    if not (digits and dashes and colons and (between == ord("t") or data[at + 10] == ord(" "))):
        return FAILED, int64(0)
    day = _day(_pair(data, at) * 100 + _pair(data, at + 2), _pair(data, at + 5), _pair(data, at + 8))
    hour, minute, second = _pair(data, at + 11), _pair(data, at + 14), _pair(data, at + 17)
    if day == FAILED or hour > 23 or minute > 59 or second > 60:
        return FAILED, int64(0)
    at += 19
    fraction_us = int64(0)
    if data[at] == ord("."):
        at, fraction_us = _fraction_us(data, at + 1)
        if at == FAILED:
            return FAILED, int64(0)
    at, zone = _zone_minutes(data, at)
    time_us = (((day * 24 + hour) * 60 + minute - zone) * 60 + second) * 1_000_000 + fraction_us
    if at == FAILED or time_us < 0 or time_us >= TIME_US_END:
        return FAILED, int64(0)
    return at, time_us
