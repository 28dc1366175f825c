"""The late topic as it is read: every message, and where its event stood."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dataflows.buses.port import Bus

_SCAN_EVENTS = 4096
_WAIT_S = 0.002


def read_messages(bus: Bus, topic: str) -> Iterator[bytes]:
    """Yield every message that the topic holds; what is on its way is waited for."""
    for partition in bus.partitions(topic):
        with closing(bus.reader(topic, partition, None)) as reader:
            while (chunk := reader.poll(_SCAN_EVENTS)) is not None:
                if len(chunk.lengths) == 0:
                    time.sleep(_WAIT_S)
                yield from (chunk.message(i) for i in range(len(chunk.lengths)))


def row_of(event: dict[str, Any]) -> int:
    """Place of a late event, as `set_aside.late_message` wrote it, in a message of many signals, or -1."""
    place = f"{event['partition']}/{event['offset']}/"
    _, found, row = str(event["id"]).rpartition(place)
    return int(row) if found else -1
