"""Messages on their way to a bus, and how a snapshot holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

STRUCTURED = (("content-type", "application/cloudevents+json; charset=UTF-8"),)
"""Headers of a structured CloudEvent."""

_NO_KEY = -1


class Message(NamedTuple):
    """What a bus is given to keep. Folder and memory keep the value alone.

    key: messages of one key stay in order where a topic has several partitions; None: anywhere.
    """

    value: bytes
    key: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


def pack_messages(messages: Sequence[Message]) -> dict[str, NDArray[np.generic]]:
    """The messages as arrays for `pack`."""
    keys = [m.key for m in messages]
    headers = orjson.dumps([m.headers for m in messages]) if any(m.headers for m in messages) else b""
    return {
        "data": np.frombuffer(b"".join(m.value for m in messages), np.uint8),
        "lengths": np.array([len(m.value) for m in messages], np.int64),
        "keys": np.frombuffer(b"".join(key for key in keys if key is not None), np.uint8),
        "key_lengths": np.array([_NO_KEY if key is None else len(key) for key in keys], np.int64),
        "headers": np.frombuffer(headers, np.uint8),
    }


def unpack_messages(arrays: Mapping[str, NDArray[np.generic]]) -> list[Message]:
    """What `pack_messages` was given; values alone, if a version before keys and headers has packed them."""
    values = _cut(arrays["data"], arrays["lengths"])
    if "keys" not in arrays:
        return [Message(value) for value in values]
    lengths = arrays["key_lengths"].astype(np.int64)
    keys = _cut(arrays["keys"], np.maximum(lengths, 0))
    known = lengths != _NO_KEY
    packed = arrays["headers"].tobytes()
    headers = orjson.loads(packed) if packed else [()] * len(values)
    return [
        Message(value, key if has_key else None, tuple((name, text) for name, text in some))
        for value, key, has_key, some in zip(values, keys, known.tolist(), headers, strict=True)
    ]


def _cut(data: NDArray[np.generic], lengths: NDArray[np.generic]) -> list[bytes]:
    whole, ends = data.tobytes(), np.cumsum(lengths).tolist()
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
