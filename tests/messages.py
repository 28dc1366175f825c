"""Messages for the decoder: the feature sets they feed, good signals with one thing changed, and chunks of them."""

from __future__ import annotations

import json

import numpy as np

from operators.feature_sets import FeatureSets, parse_feature_sets
from operators.records import RawChunk
from operators.simd import PAD

SETS = """
[[feature_set]]
name = "every"
version = 1
fields = ["a", "temperature_of_the_inlet_valve_1"]
windows = ["5s"]
halflife = "4s"

[[feature_set]]
name = "plants"
version = 1
fields = ["a", "b"]
windows = ["5s"]
halflife = "4s"
sources = ["plant/*"]
"""
FIELDS = ("a", "temperature_of_the_inlet_valve_1", "b")


def feature_sets() -> FeatureSets:
    """Two sets: one takes every source, one takes plants only."""
    return parse_feature_sets(SETS, where="test.toml")


def chunk_of(messages: list[bytes], *, between: bytes = b"\n", behind: int = PAD) -> RawChunk:
    """A chunk of these messages; with `behind` bytes after the last one the fast lane may read all of them."""
    lengths = np.array([len(m) for m in messages], np.int64)
    starts = np.cumsum(lengths + len(between)) - lengths - len(between)
    data = between.join(messages) + b"\n" * behind
    return RawChunk("p0", np.frombuffer(data, np.uint8), starts, lengths, 1000 + 10 * np.arange(len(messages)))


def signal(**members: object) -> bytes:
    """A good signal with some members changed; `...` removes one."""
    event_time = "2026-03-01T12:00:00.5Z"
    whole = {"entity_id": "pump", "event_time": event_time, "sequence": 7, "payload": {"a": 1.5}} | members
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def with_text(key: str, text: str) -> bytes:
    """A good signal whose member or field `key` is written as this text."""
    return signal(**{key: "@"}).replace(b'"@"', text.encode())


def with_number(text: str) -> bytes:
    """A good signal whose payload field `b` is written as this text."""
    return signal(payload={"b": "@"}).replace(b'"@"', text.encode())
