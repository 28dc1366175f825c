"""Messages that say what happened to documents: bytes to a `DocumentEvent`, or why not. Pure.

CloudEvents 1.0 in structured form, or the same bare: `{"type": "doc_added", "data": {"uri": …, "content": …}}`, where
the members of `data` may also stand beside `type`.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from operators.errors import DecodeError, SchemaError
from operators.extract import MARKDOWN, PDF, PLAIN
from operators.signal_rules import Reason, load_json

URI_CHARS = 2048
"""Longest uri that a message may name."""

EventKind = Literal["added", "updated", "deleted"]

_KINDS: dict[str, EventKind] = {"doc_added": "added", "doc_updated": "updated", "doc_deleted": "deleted"}
_SUFFIXES = {"md": MARKDOWN, "markdown": MARKDOWN, "txt": PLAIN, "pdf": PDF}
_MEDIA_TYPES = {MARKDOWN: MARKDOWN, "text/x-markdown": MARKDOWN, PLAIN: PLAIN, PDF: PDF}
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s]+")
_SEPARATORS = re.compile(r"[/\\?#]")
_DOTS = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)


class EventReason(StrEnum):
    """Why a message is refused: the stable word in listings and metrics."""

    TOO_LARGE = "too_large"
    NOT_UTF8 = Reason.NOT_UTF8.value
    NOT_JSON = Reason.NOT_JSON.value
    NOT_OBJECT = "not_object"
    ENVELOPE = "envelope"
    TYPE = "type"
    URI = "uri"
    CONTENT = "content"
    MEDIA_TYPE = "media_type"
    OUTSIDE = "outside"
    COVERED = "covered"


@dataclass(frozen=True, slots=True)
class DocumentEvent:
    """What one message says.

    content: the document's bytes, if the message holds them. media_type: what it says they are; None: the uri tells.
    """

    kind: EventKind
    uri: str
    content: bytes | None = None
    media_type: str | None = None


def parse_event(message: bytes, *, bytes_max: int) -> DocumentEvent:
    """Read one message of at most `bytes_max` bytes.

    Raises DecodeError or SchemaError with an EventReason; sentences quote nothing that the message holds.
    """
    if len(message) > bytes_max:
        said = f"the message has {len(message)} bytes; EVENT_BYTES_MAX lets {bytes_max} pass"
        raise DecodeError(EventReason.TOO_LARGE, said)
    value = _object(load_json(message), "the message")
    data = _object(_data(value), "`data`")
    kind = _kind(value.get("type"))
    uri = check_uri(data.get("uri"))
    if kind == "deleted":
        return DocumentEvent(kind, uri)
    return DocumentEvent(kind, uri, _content(data), _media_type(data))


def check_uri(uri: object) -> str:
    """The uri, if it can name a document. Raises SchemaError."""
    if not isinstance(uri, str) or not uri:
        raise _bad_uri("is missing; a string is expected")
    if len(uri) > URI_CHARS:
        raise _bad_uri(f"has {len(uri)} characters; at most {URI_CHARS} are taken")
    if not uri.isprintable() or not _URI.fullmatch(uri):
        raise _bad_uri("is none: a scheme, a colon and no blanks or control characters, as in https://wiki/page")
    if any(_DOTS.fullmatch(segment) for segment in _SEPARATORS.split(uri)):
        raise _bad_uri("holds `.` or `..` as a segment; a document has one name")
    return uri


def _bad_uri(why: str) -> SchemaError:
    return SchemaError(EventReason.URI, f"`uri` {why}")


def _object(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DecodeError(EventReason.NOT_OBJECT, f"{what} is no object")


def _data(value: dict[str, Any]) -> object:
    """What the event is about, out of its envelope."""
    if "specversion" not in value:
        return value.get("data", value)
    if value["specversion"] != "1.0":
        said = 'the CloudEvents envelope has another `specversion`; "1.0" is expected'
        raise DecodeError(EventReason.ENVELOPE, said)
    if "data" in value:
        return value["data"]
    if "data_base64" not in value:
        raise DecodeError(EventReason.ENVELOPE, "the CloudEvents envelope needs either `data` or `data_base64`")
    return load_json(_decoded(value["data_base64"], "data_base64", EventReason.ENVELOPE))


def _kind(said: object) -> EventKind:
    """Also with a prefix, as CloudEvents asks for: `com.example.doc_added`."""
    kind = _KINDS.get(said.rpartition(".")[2]) if isinstance(said, str) else None
    if kind is None:
        raise SchemaError(EventReason.TYPE, f"`type` is not one of {', '.join(_KINDS)}")
    return kind


def _content(data: dict[str, Any]) -> bytes | None:
    text, encoded = data.get("content"), data.get("content_base64")
    if text is not None and encoded is not None:
        raise SchemaError(EventReason.CONTENT, "`content` and `content_base64` are both there; one is expected")
    if encoded is not None:
        return _decoded(encoded, "content_base64", EventReason.CONTENT)
    if text is None:
        return None
    if not isinstance(text, str):
        raise SchemaError(EventReason.CONTENT, "`content` is no string; bytes go into `content_base64`")
    return text.encode()


def _decoded(encoded: object, name: str, reason: EventReason) -> bytes:
    try:
        if isinstance(encoded, str):
            return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(reason, f"`{name}` is not base64") from error
    raise DecodeError(reason, f"`{name}` is no string of base64")


def _media_type(data: dict[str, Any]) -> str | None:
    """`media_type`, else `suffix`, else nothing is said."""
    said, suffix = data.get("media_type"), data.get("suffix")
    if said is None and suffix is None:
        return None
    if said is None:
        found = _SUFFIXES.get(suffix.removeprefix(".").lower()) if isinstance(suffix, str) else None
    else:
        found = _MEDIA_TYPES.get(said.partition(";")[0].strip().lower()) if isinstance(said, str) else None
    if found is None:
        known = f"{', '.join(dict.fromkeys(_MEDIA_TYPES.values()))}, or as `suffix` {', '.join(_SUFFIXES)}"
        raise SchemaError(EventReason.MEDIA_TYPE, f"the document is of no kind that is read: {known}")
    return found
