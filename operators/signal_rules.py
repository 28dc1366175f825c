"""What a signal is: the single authority on which messages are good and on what is said of the others.

Plain Python over orjson, one message at a time. The fast lane (operators/json_lane.py) must give what
this gives, or leave the message to it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from operators.errors import DecodeError, SchemaError
from operators.rfc3339 import TIME_US_END, lacks_zone, parse_time

EVENT_BYTES_MAX = 1 << 20
"""Longest message that is looked at, unless a Decoder is told otherwise."""

ENTITY_BYTES_MAX = 1024
"""Longest entity_id in UTF-8 bytes."""

_EXACT_MAX = 1 << 53
_WORD_END = 1 << 63
_BLANKS = b" \t\r\n"
_NAME_MAX = 64
_DIGITS_MAX = 64
_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "an object",
}


class Reason(StrEnum):
    """Why a message is refused: the stable word in listings and metrics."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_OBJECT = "not_object"
    NOT_ARROW = "not_arrow"
    ENVELOPE = "envelope"
    ENTITY_ID = "entity_id"
    EVENT_TIME = "event_time"
    SEQUENCE = "sequence"
    PAYLOAD = "payload"
    FIELD = "field"
    SOURCE = "source"
    TRACE_ID = "trace_id"


@dataclass(frozen=True, slots=True)
class Signal:
    """One good message. event_time: microseconds. values: one a declared field, NaN where null or missing."""

    entity: bytes
    event_time: int
    sequence: int
    values: list[float]
    source: str | None


@dataclass(frozen=True, slots=True)
class Document:
    """The object that a message holds, out of its envelope, not yet judged."""

    message: bytes
    members: dict[str, Any]

    @property
    def trace_id(self) -> str | None:
        """The trace_id if there is one to show."""
        trace_id = self.members.get("trace_id")
        return trace_id if isinstance(trace_id, str) else None


def open_document(message: bytes, *, bytes_max: int = EVENT_BYTES_MAX) -> Document:
    """Parse a message down to the signal's object, bare or from a CloudEvents envelope.

    Raises DecodeError if the message is blank, longer than `bytes_max`, not UTF-8, not JSON or not an object, or if
    its envelope is broken.
    """
    if len(message) > bytes_max:
        raise DecodeError(Reason.TOO_LARGE, f"the message has {len(message)} bytes; at most {bytes_max} are taken")
    if not message.strip(_BLANKS):
        raise DecodeError(Reason.EMPTY, "the message is empty; a JSON object is expected")
    return Document(message, _members(message, load_json))


def check(document: Document, fields: tuple[str, ...]) -> Signal:
    """Turn an open document into a signal with these payload fields.

    Raises SchemaError naming the member or field that is missing or of the wrong kind; it quotes no value.
    """
    members = document.members
    entity = _entity(members)
    event_time = _event_time(members)
    sequence = _sequence(members)
    payload = _payload(members)
    values = [_number(document, name, payload.get(name)) for name in fields]
    _optional_text(members, "trace_id", Reason.TRACE_ID)
    return Signal(entity, event_time, sequence, values, _optional_text(members, "source", Reason.SOURCE))


def load_json(text: bytes) -> object:
    """Parse JSON. Raises DecodeError with Reason.NOT_UTF8 or NOT_JSON, and where."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            text.decode()
        except UnicodeDecodeError as broken:
            message = f"the message is not UTF-8: {broken.reason} at byte {broken.start}"
            raise DecodeError(Reason.NOT_UTF8, message) from broken
        message = f"the message is not JSON: {error.msg} at character {error.pos}"
        raise DecodeError(Reason.NOT_JSON, message) from error


def _load_exactly(text: bytes) -> object:
    """Parse what `load_json` took, with integers of any size; a huge one only has to stay a huge integer."""
    return json.loads(text.decode(), parse_int=lambda digits: int(digits[:_DIGITS_MAX]))


def _members(message: bytes, load: Callable[[bytes], object]) -> dict[str, Any]:
    document = _object(load(message), "the message")
    if "specversion" not in document or ("entity_id" in document and not document.keys() & {"data", "data_base64"}):
        return document
    if document["specversion"] != "1.0":
        raise DecodeError(Reason.ENVELOPE, 'the CloudEvents envelope has another `specversion`; "1.0" is expected')
    content_type = document.get("datacontenttype")
    if content_type is not None and not is_json_type(content_type):
        raise DecodeError(Reason.ENVELOPE, "`datacontenttype` of the CloudEvents envelope is not a JSON media type")
    if ("data" in document) == ("data_base64" in document):
        raise DecodeError(Reason.ENVELOPE, "the CloudEvents envelope needs either `data` or `data_base64`")
    if "data" in document:
        return _object(document["data"], "`data` of the CloudEvents envelope")
    encoded = document["data_base64"]
    if not isinstance(encoded, str):
        raise DecodeError(Reason.ENVELOPE, f"`data_base64` is {_kind(encoded)}; a string is expected")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(Reason.ENVELOPE, "`data_base64` of the CloudEvents envelope is not base64") from error
    return _object(load(decoded), "`data_base64` of the CloudEvents envelope")


def is_json_type(content_type: object) -> bool:
    """Whether it is a media type of JSON, with parameters or without."""
    if not isinstance(content_type, str):
        return False
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.endswith(("/json", "+json"))


def _object(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DecodeError(Reason.NOT_OBJECT, f"{what} is {_kind(value)}; an object is expected")


def _kind(value: object) -> str:
    return _KINDS[type(value)]


def _required(members: dict[str, Any], key: str, reason: Reason, expected: str) -> object:
    if key not in members:
        raise SchemaError(reason, f"`{key}` is missing; {expected} is expected")
    return members[key]


def _entity(members: dict[str, Any]) -> bytes:
    expected = f"a string of 1 to {ENTITY_BYTES_MAX} UTF-8 bytes"
    entity_id = _required(members, "entity_id", Reason.ENTITY_ID, expected)
    if not isinstance(entity_id, str):
        raise SchemaError(Reason.ENTITY_ID, f"`entity_id` is {_kind(entity_id)}; {expected} is expected")
    entity = entity_id.encode()
    if not entity:
        raise SchemaError(Reason.ENTITY_ID, f"`entity_id` is empty; {expected} is expected")
    if len(entity) > ENTITY_BYTES_MAX:
        raise SchemaError(Reason.ENTITY_ID, f"`entity_id` has {len(entity)} UTF-8 bytes; {expected} is expected")
    return entity


def _event_time(members: dict[str, Any]) -> int:
    expected = "an RFC 3339 time with zone, as 2026-03-01T12:00:00Z, or integer epoch milliseconds"
    value = _required(members, "event_time", Reason.EVENT_TIME, expected)
    if isinstance(value, str):
        try:
            event_time = parse_time(value)
        except ValueError as error:
            fault = "has no zone" if lacks_zone(value) else "is no such time"
            raise SchemaError(Reason.EVENT_TIME, f"`event_time` {fault}; {expected} is expected") from error
    elif type(value) is int:
        event_time = value * 1000
    else:
        raise SchemaError(Reason.EVENT_TIME, f"`event_time` is {_kind(value)}; {expected} is expected")
    if event_time < 0:
        raise SchemaError(Reason.EVENT_TIME, "`event_time` is before 1970; a year from 1970 to 2261 is expected")
    if event_time >= TIME_US_END:
        raise SchemaError(Reason.EVENT_TIME, "`event_time` is after 2261; a year from 1970 to 2261 is expected")
    return event_time


def _sequence(members: dict[str, Any]) -> int:
    expected = "an integer of 64 bits"
    sequence = _required(members, "sequence", Reason.SEQUENCE, expected)
    if type(sequence) is not int:
        raise SchemaError(Reason.SEQUENCE, f"`sequence` is {_kind(sequence)}; {expected} is expected")
    if not -_WORD_END <= sequence < _WORD_END:
        raise SchemaError(Reason.SEQUENCE, f"`sequence` is beyond 64 bits; {expected} is expected")
    return sequence


def _payload(members: dict[str, Any]) -> dict[str, object]:
    expected = "an object of numbers and nulls"
    payload = _required(members, "payload", Reason.PAYLOAD, expected)
    if not isinstance(payload, dict):
        raise SchemaError(Reason.PAYLOAD, f"`payload` is {_kind(payload)}; {expected} is expected")
    for name, value in payload.items():
        if isinstance(value, dict | list):
            message = f"payload field `{name[:_NAME_MAX]}` is {_kind(value)}; {expected} is expected"
            raise SchemaError(Reason.PAYLOAD, message)
    return payload


def _number(document: Document, name: str, value: object) -> float:
    if value is None:
        return math.nan
    if type(value) is float and abs(value) >= _WORD_END:
        value = _as_written(document, name)
    if type(value) is float:
        return value
    if type(value) is not int:
        raise SchemaError(Reason.FIELD, f"payload field `{name}` is {_kind(value)}; a number or null is expected")
    if not -_EXACT_MAX <= value <= _EXACT_MAX:
        raise SchemaError(Reason.FIELD, f"payload field `{name}` is an integer beyond ±2^53; a float64 cannot hold it")
    return float(value)


def _as_written(document: Document, name: str) -> object:
    """The value of a field, of type int if it is written as an integer: orjson makes floats of those beyond 64 bits."""
    try:
        payload = _members(document.message, _load_exactly)["payload"]
    except RecursionError as error:
        raise SchemaError(Reason.FIELD, f"payload field `{name}` is huge, and the message nested too deep") from error
    value: object = payload[name]
    return value


def _optional_text(members: dict[str, Any], key: str, reason: Reason) -> str | None:
    value = members.get(key)
    if value is None or isinstance(value, str):
        return value
    raise SchemaError(reason, f"`{key}` is {_kind(value)}; a string or null is expected")
