"""Events in CloudEvents 1.0 as messages of Kafka, by its protocol binding: binary or structured.

Reading needs nothing of this: the decoder takes both modes (operators/decode.py, operators/message_headers.py).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import orjson

from operators.messages import STRUCTURED, Message
from operators.signal_rules import is_json_type

SPECVERSION = "1.0"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = re.compile(r"[a-z0-9]{1,20}")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_CORE = frozenset(
    {
        *("specversion", "id", "source", "type", "subject", "time"),
        *("datacontenttype", "dataschema", "data", "data_base64"),
    }
)


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """An event as others are told of it.

    id: the same for a repeat, see `event_id`; with `source` it names the event. data: its bytes, None for none; JSON
    text if `content_type` is a type of JSON. time_us: when it happened, microseconds since the Unix epoch. extensions:
    further attributes, names of up to 20 lower-case letters and digits.
    """

    id: str
    source: str
    type: str
    data: bytes | None = None
    content_type: str = "application/json"
    subject: str | None = None
    time_us: int | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)

    def attributes(self) -> dict[str, str]:
        """All attributes that are set, as text, but that of the content type.

        Raises ValueError for an empty one, a text that the specification forbids, or a name that is none.
        """
        found = {"specversion": SPECVERSION, "id": self.id, "source": self.source, "type": self.type}
        if self.subject is not None:
            found["subject"] = self.subject
        if self.time_us is not None:
            found["time"] = (_EPOCH + timedelta(microseconds=self.time_us)).isoformat().replace("+00:00", "Z")
        for name in self.extensions:
            if name in _CORE or _NAME.fullmatch(name) is None:
                raise ValueError(f"`{name[:64]}` cannot be the name of an extension attribute")
        found |= self.extensions
        for name, text in found.items():
            if not text or _FORBIDDEN.search(text):
                raise ValueError(f"attribute `{name}` of a CloudEvent is empty or has characters that none may have")
        return found


def attribute(text: str) -> str:
    """The text as the value of an attribute: characters that none may have are percent-encoded."""
    return _FORBIDDEN.sub(lambda found: quote(found[0], errors="replace"), text)


def event_id(*place: str | int) -> str:
    """An id made of where the event comes from, another for every other place: a repeat has the same one."""
    return "/".join(quote(str(part), safe=" :;,.@+=~()[]{}<>|^$!*'") for part in place)


def binary(event: CloudEvent, key: bytes | None = None) -> Message:
    """The event with its data as value and its attributes as headers. key: of Kafka's message; raises ValueError."""
    headers = [(f"ce_{name}", text) for name, text in event.attributes().items()]
    if event.data is not None:
        headers.append(("content-type", event.content_type))
    return Message(event.data or b"", key, tuple(headers))


def structured(event: CloudEvent, key: bytes | None = None) -> Message:
    """The event as one JSON object, data of another type in base64. Raises ValueError."""
    members: dict[str, object] = dict(event.attributes())
    if event.data is not None:
        members["datacontenttype"] = event.content_type
        if is_json_type(event.content_type):
            members["data"] = orjson.Fragment(event.data)
        else:
            members["data_base64"] = base64.b64encode(event.data).decode()
    return Message(orjson.dumps(members), key, STRUCTURED)
