"""Messages that a C library holds, each at an address of its own, copied out into one buffer.

The layout is that of librdkafka's `rd_kafka_message_t`, which is public and frozen. Addresses and functions come in as
numbers; nothing here checks them.
"""

# ruff: noqa: ANN401, ARG001  # LLVM's builders carry no types, and numba dictates the arguments of an intrinsic

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # llvmlite carries no types
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from operators.compiled import kernel

_ERROR, _PAYLOAD, _LENGTH, _OFFSET = 0, 24, 32, 56
"""Where the members of a message stand."""

# Their declared types do not know what calling an intrinsic from compiled code gives.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic
_utils: Any = cgutils

_BYTE, _INT, _WORD = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _load(kind: Any) -> Any:
    """Compiled function (address) -> int64: the integer of that kind that stands there."""

    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], kind.as_pointer())
            return builder.sext(builder.load(pointer, align=1, typ=kind), _WORD)

        return types.int64(types.int64), codegen

    return _intrinsic(load)


_load_int32 = _load(_INT)
_load_int64 = _load(_WORD)


@_intrinsic
def _copy(typingctx: Any, data: Any, at: Any, address: Any, length: Any) -> Any:
    """Compiled function (data, at, address, length): copy bytes from the address to data[at:]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = context.make_array(signature.args[0])(context, builder, args[0]).data
        target = _utils.gep_inbounds(builder, base, args[1])
        source = builder.inttoptr(args[2], _BYTE.as_pointer())
        _utils.raw_memcpy(builder, target, source, args[3], 1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64, types.int64), codegen


@_intrinsic
def _call(typingctx: Any, function: Any, message: Any) -> Any:
    """Compiled function (function, message): call `void function(message)`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_WORD])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@_intrinsic
def _call_for_int64(typingctx: Any, function: Any, message: Any) -> Any:
    """Compiled function (function, message) -> int64: call `int64 function(message, NULL)`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_WORD, [_WORD, _WORD])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1], ir.Constant(_WORD, 0)])

    return types.int64(types.int64, types.int64), codegen


@kernel
def total_length(messages):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Bytes that the payloads of the messages at these addresses (int64 (n,)) take; errors take none."""
    total = 0
    for i in range(len(messages)):
        if _load_int32(messages[i] + _ERROR) == 0:
            total += _load_int64(messages[i] + _LENGTH)
    return total


@kernel
def copy_messages(messages, data, starts, lengths, offsets, timestamps, errors, timestamp_of, destroy):  # type: ignore[no-untyped-def]  # as above
    """Copy the good messages out, in order, give the others back, and return how many were good.

    messages: int64 (n,), addresses; those of the good ones stand in front then. data: uint8, of `total_length` bytes at
    least. starts, lengths, offsets, timestamps: int64 (n,), filled as far as there are good ones. errors: int64 (n, 2),
    of message i its error code, 0 if it is good, and its offset. timestamp_of, destroy: the library's functions, as
    addresses.
    """
    count = 0
    at = 0
    for i in range(len(messages)):
        message = messages[i]
        error = _load_int32(message + _ERROR)
        offset = _load_int64(message + _OFFSET)
        errors[i, 0] = error
        errors[i, 1] = offset
        if error == 0:
            length = _load_int64(message + _LENGTH)
            _copy(data, at, _load_int64(message + _PAYLOAD), length)
            starts[count] = at
            lengths[count] = length
            offsets[count] = offset
            timestamps[count] = _call_for_int64(timestamp_of, message)
            at += length
            messages[count] = message
            count += 1
        else:
            _call(destroy, message)
    return count


@kernel
def give_back(messages, destroy):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Give these messages (int64 (n,), addresses) back to the library, whose function is `destroy`."""
    for i in range(len(messages)):
        _call(destroy, messages[i])
