"""Bytes read many at a time: compiled loads and comparisons that look at 8 or 32 bytes in one step.

Nothing here checks bounds: a caller may read PAD bytes from any place of its message, no further.
A mask is a uint64 whose bit i answers for byte at + i; bits 32 to 63 are 0. LLVM turns the vectors of
32 bytes into whatever the machine has, so the results are the same everywhere.
"""

# ruff: noqa: ANN401, ARG001  # LLVM's builders carry no types, and numba dictates the arguments of an intrinsic

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # llvmlite carries no types
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PAD = 64
"""Bytes behind a message that must be readable."""

# Their declared types do not know what calling an intrinsic from compiled code gives.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic
_gep: Any = cgutils.gep_inbounds

_BYTE = ir.IntType(8)
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_BYTE, 32)
_BIT_FALSE = ir.Constant(ir.IntType(1), 0)


def _address(context: Any, builder: Any, array_type: Any, array: Any, at: Any, what: Any) -> Any:  # numba's own order
    base = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(_gep(builder, base, at), what.as_pointer())


def _vector(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    return builder.load(_address(context, builder, array_type, array, at, _VECTOR), align=1, typ=_VECTOR)


def _splat(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * 32)


def _mask(builder: Any, bits: Any) -> Any:
    return builder.zext(builder.bitcast(bits, ir.IntType(32)), _WORD)


def _mask_of(test: Callable[[Any, Any], Any]) -> Any:
    """Compiled function (data, at) -> mask of the bytes that pass `test`, given as LLVM code."""

    def mask(typingctx: Any, data: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _mask(builder, test(builder, _vector(context, builder, signature.args[0], args[0], args[1])))

        return types.uint64(data, types.int64), codegen

    return _intrinsic(mask)


def _is_digit(builder: Any, vector: Any) -> Any:
    return builder.icmp_unsigned("<", builder.sub(vector, _splat(ord("0"))), _splat(10))


def _is_stop(builder: Any, vector: Any) -> Any:
    quote, backslash = (builder.icmp_unsigned("==", vector, _splat(ord(mark))) for mark in '"\\')
    control = builder.icmp_unsigned("<", vector, _splat(0x20))
    return builder.or_(builder.or_(quote, backslash), control)


def _is_newline(builder: Any, vector: Any) -> Any:
    return builder.icmp_unsigned("==", vector, _splat(ord("\n")))


def _is_high(builder: Any, vector: Any) -> Any:
    return builder.icmp_signed("<", vector, _splat(0))


digit_mask = _mask_of(_is_digit)
"""Mask of 0 to 9."""

stop_mask = _mask_of(_is_stop)
"""Mask of what ends the plain part of a JSON string: a quote, a backslash, a control character."""

newline_mask = _mask_of(_is_newline)
"""Mask of line ends."""

high_mask = _mask_of(_is_high)
"""Mask of the bytes that are not ASCII."""


@_intrinsic
def differ_mask(typingctx: Any, data: Any, at: Any, other: Any, other_at: Any) -> Any:
    """Mask of the bytes in which data[at:] and other[other_at:] differ."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left = _vector(context, builder, signature.args[0], args[0], args[1])
        right = _vector(context, builder, signature.args[2], args[2], args[3])
        return _mask(builder, builder.icmp_unsigned("!=", left, right))

    return types.uint64(data, types.int64, other, types.int64), codegen


@_intrinsic
def copy_vector(typingctx: Any, target: Any, target_at: Any, data: Any, at: Any) -> Any:
    """Copy 32 bytes from data[at:] to target[target_at:]; the two do not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _vector(context, builder, signature.args[2], args[2], args[3])
        builder.store(vector, _address(context, builder, signature.args[0], args[0], args[1], _VECTOR), align=1)
        return context.get_dummy_value()

    return types.void(target, types.int64, data, types.int64), codegen


@_intrinsic
def load_word(typingctx: Any, data: Any, at: Any) -> Any:
    """The 8 bytes from data[at:] as a uint64, the first one lowest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], args[0], args[1], _WORD), align=1, typ=_WORD)

    return types.uint64(data, types.int64), codegen


@_intrinsic
def store_word(typingctx: Any, target: Any, at: Any, word: Any) -> Any:
    """Write a uint64 to the 8 bytes of target[at:], its lowest byte first."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, signature.args[0], args[0], args[1], _WORD), align=1)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.uint64), codegen


@_intrinsic
def trailing_zeros(typingctx: Any, mask: Any) -> Any:
    """Zero bits below the lowest 1 of a uint64, as int64; 64 if there is none."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], _BIT_FALSE)

    return types.int64(types.uint64), codegen


@_intrinsic
def leading_zeros(typingctx: Any, word: Any) -> Any:
    """Zero bits above the highest 1 of a uint64, as int64; 64 if there is none."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], _BIT_FALSE)

    return types.int64(types.uint64), codegen


@_intrinsic
def multiply_high(typingctx: Any, left: Any, right: Any) -> Any:
    """The upper 64 bits of the product of two uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        double = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], double), builder.zext(args[1], double))
        return builder.trunc(builder.lshr(product, ir.Constant(double, 64)), _WORD)

    return types.uint64(types.uint64, types.uint64), codegen


@_intrinsic
def bits_to_float(typingctx: Any, word: Any) -> Any:
    """The float64 whose bits are this uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen
