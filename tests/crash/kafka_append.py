"""Append batches to a topic, and die where a fault says.

`python -m tests.crash.kafka_append ADDRESS TOPIC FIRST LAST [FAULT]…`: batch n has n % 4 + 1 messages; the faults are
set before the last one. See tests.crash.launch for faults.
"""

from __future__ import annotations

import sys
from contextlib import closing

from dataflows.buses.kafka import KafkaBus
from operators.messages import Message
from tests.crash.launch import set_fault

WRITER = "w"


def batch(number: int) -> list[Message]:
    """The messages of a batch, spread over partitions."""
    return [Message(b"%d-%d" % (number, i), b"%d" % i) for i in range(number % 4 + 1)]


def place(number: int) -> int:
    """Where the batch begins."""
    return sum(len(batch(n)) for n in range(number))


def main(address: str, topic: str, first: str, last: str, *faults: str) -> None:
    """Append them."""
    with closing(KafkaBus(address, properties={})) as bus:
        for number in range(int(first), int(last) + 1):
            if number == int(last):
                for fault in faults:
                    set_fault(fault)
            bus.append(topic, WRITER, batch(number), at=place(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
