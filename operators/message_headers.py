"""What the headers of a message add: they never decide whether it is a signal, they say more about one that is none.

A value says by itself what it is: a bare signal, which is also what the binary mode of CloudEvents carries, a
structured envelope, or an Arrow stream. So headers cost nothing as long as all is well, and a message means the same
when it comes again without them.
"""

from __future__ import annotations

import re

from operators.errors import DecodeError, SkippableError
from operators.records import Headers
from operators.signal_rules import Reason, is_json_type

ARROW_TYPE = "application/vnd.apache.arrow.stream"
"""Media type of an Arrow IPC stream."""

_ENVELOPES = "application/cloudevents"
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.DOTALL)


def trace_of(headers: Headers) -> str | None:
    """The trace-id in a W3C `traceparent`, 32 hexadecimal digits, if there is a valid one."""
    match = _TRACEPARENT.fullmatch(headers.traceparent or b"")
    return match[1].decode() if match and match[1].strip(b"0") else None


def explained(error: SkippableError, headers: Headers) -> SkippableError:
    """What is wrong with a refused message, given its headers: the error itself, unless they say what was meant."""
    if error.reason in {Reason.EMPTY, Reason.TOO_LARGE, Reason.NOT_ARROW}:
        return error
    told = _fault(headers)
    return error if told is None else DecodeError(*told)


def _fault(headers: Headers) -> tuple[Reason, str] | None:
    """(reason, sentence) if a message with these headers cannot be read, whatever it holds, if it is no signal."""
    content_type = None if headers.content_type is None else headers.content_type.decode("utf-8", "replace")
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == f"{_ENVELOPES}+json":
        return None
    if media_type.startswith(_ENVELOPES):
        told = f"header `content-type` names a form of CloudEvents that is not read; {_ENVELOPES}+json is"
        return Reason.ENVELOPE, told
    if media_type == ARROW_TYPE:
        told = "header `content-type` names an Arrow IPC stream, but the message does not begin as one"
        return Reason.NOT_ARROW, told
    if headers.specversion not in {None, b"1.0"}:
        told = 'header `ce_specversion` names another version of CloudEvents; "1.0" is expected'
        return Reason.ENVELOPE, told
    if headers.specversion and content_type is not None and not is_json_type(content_type):
        return Reason.ENVELOPE, "header `content-type` of the CloudEvent is not a JSON media type"
    return None
