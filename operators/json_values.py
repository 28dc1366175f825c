"""Pieces of JSON that the fast lane steps over: blanks, strings, values of unknown keys; compiled.

Each takes a place and the end of the message and returns the place behind the piece, or FAILED if it
is not plain, valid JSON: these pieces flag a message, they never say what is wrong with it.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from operators.compiled import kernel, piece
from operators.floats import FAILED, number_shape
from operators.simd import differ_mask, high_mask, load_word, stop_mask, trailing_zeros

_DEPTH_MAX = 64
_VECTOR = 32
_NULL = np.uint64(int.from_bytes(b"null", "little"))
_TRUE = np.uint64(int.from_bytes(b"true", "little"))
_FALSE = np.uint64(int.from_bytes(b"false", "little"))


@piece
def same_bytes(data, at, other, other_at, size):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Whether data[at:at + size] equals other[other_at:other_at + size]; 32 bytes behind both are readable."""
    while size > _VECTOR:
        if differ_mask(data, at, other, other_at) != uint64(0):
            return False
        at += _VECTOR
        other_at += _VECTOR
        size -= _VECTOR
    return differ_mask(data, at, other, other_at) & ((uint64(1) << uint64(size)) - uint64(1)) == uint64(0)


@piece
def hash_bytes(data, at, size, seed):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """A quick uint64 hash of data[at:at + size], for tables in memory only."""
    mixed = uint64(seed) + uint64(size)
    while size > 0:
        word = load_word(data, at)
        if size < 8:
            word &= (uint64(1) << uint64(8 * size)) - uint64(1)
        mixed = (mixed ^ word) * uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> uint64(32)
        at += 8
        size -= 8
    return mixed


@kernel
def valid_utf8(data, at, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Whether data[at:end] is UTF-8: no stray or missing byte, overlong form, surrogate or code above U+10FFFF."""
    while at < end:
        first = int64(data[at])
        at += 1
        if first < 0x80:
            continue
        if first < 0xC2 or first > 0xF4:
            return False
        more = 1 + int64(first >= 0xE0) + int64(first >= 0xF0)
        if at + more > end:
            return False
        second = int64(data[at])
        lowest = 0xA0 if first == 0xE0 else (0x90 if first == 0xF0 else 0x80)
        highest = 0x9F if first == 0xED else (0x8F if first == 0xF4 else 0xBF)
        if second < lowest or second > highest:
            return False
        for i in range(1, more):
            if data[at + i] & 0xC0 != 0x80:
                return False
        at += more
    return True


@piece
def skip_space(data, at, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place of the first byte from `at` on that is no JSON blank, `end` at most."""
    while at < end and data[at] <= ord(" ") and is_space(data[at]):
        at += 1
    return at


@piece
def is_space(byte):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Whether the byte is one of JSON's four blanks."""
    return byte == ord(" ") or byte == ord("\n") or byte == ord("\r") or byte == ord("\t")


@piece
def scan_string(data, at, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place of the quote that closes the string which opens at `at`; FAILED if it is escaped anywhere or not UTF-8."""
    if data[at] != ord('"'):
        return FAILED
    begin = at + 1
    at = begin
    high = uint64(0)
    while at < end:
        stops = stop_mask(data, at)
        below = (stops & (~stops + uint64(1))) - uint64(1)
        high |= high_mask(data, at) & below
        if stops != uint64(0):
            at += trailing_zeros(stops)
            good = data[at] == ord('"') and at < end
            if good and high != uint64(0):
                good = valid_utf8(data, begin, at)
            return at if good else FAILED
        at += _VECTOR
    return FAILED


@piece
def skip_literal(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place behind `null`, `true` or `false`."""
    word = load_word(data, at)
    half = word & uint64(0xFFFFFFFF)
    if (half == _NULL) | (half == _TRUE):
        return at + 4
    return at + 5 if word & uint64(0xFFFFFFFFFF) == _FALSE else FAILED


@kernel
def skip_scalar(data, at, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place behind a string, a literal, or a number that is surely finite."""
    mark = data[at]
    if mark == ord('"'):
        close = scan_string(data, at, end)
        return FAILED if close == FAILED else close + 1
    if mark >= ord("f"):
        return skip_literal(data, at)
    _, _, _, exponent, behind = number_shape(data, at)
    return FAILED if exponent > 99 else behind


@piece
def _skip_member(data, at, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place of the value of the member whose key begins at `at`."""
    close = scan_string(data, at, end)
    if close == FAILED:
        return FAILED
    at = skip_space(data, close + 1, end)
    return skip_space(data, at + 1, end) if data[at] == ord(":") else FAILED


@piece
def _close(data, at, end, stack, depth):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place, stack, depth) behind a value: at the next value, or behind the outermost container if all close."""
    while depth > 0:
        at = skip_space(data, at, end)
        in_object = stack & uint64(1) == uint64(1)
        if at < end and data[at] == (ord("}") if in_object else ord("]")):
            stack >>= uint64(1)
            depth -= 1
            at += 1
        elif at < end and data[at] == ord(","):
            at = skip_space(data, at + 1, end)
            return (_skip_member(data, at, end) if in_object else at), stack, depth
        else:
            return FAILED, stack, depth
    return at, stack, depth


@kernel
def skip_value(data, at, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place behind any value, nested up to 64 deep. The stack holds a bit for each open container, 1 for an object."""
    stack = uint64(0)
    depth = 0
    while at != FAILED and at < end:
        mark = data[at]
        if mark == ord("{") or mark == ord("["):
            if depth == _DEPTH_MAX:
                return FAILED
            in_object = mark == ord("{")
            stack = (stack << uint64(1)) | uint64(in_object)
            depth += 1
            at = skip_space(data, at + 1, end)
            if data[at] != (ord("}") if in_object else ord("]")):
                at = _skip_member(data, at, end) if in_object else at
                continue
        else:
            at = skip_scalar(data, at, end)
        if at == FAILED:
            return FAILED
        at, stack, depth = _close(data, at, end, stack, depth)
        if depth == 0:
            return at
    return FAILED
