"""Slots of the source over a memory bus and a clock that a test moves."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from dataflows.buses.memory import MemoryBus
from dataflows.signal_source import SignalSlot, SignalSource, SourcePlan
from operators.intake import Piece
from operators.messages import Message
from operators.watermark import Status
from tests.strategies import SECOND, two_sets

SETS = two_sets()
IDLE_S = 30.0


@dataclass
class Clock:
    """A monotonic clock that a test moves."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.seconds


@dataclass
class Bench:
    """A memory bus, a clock, and the slots that read it."""

    bus: MemoryBus = field(default_factory=MemoryBus)
    clock: Clock = field(default_factory=Clock)
    stop: threading.Event = field(default_factory=threading.Event)
    follow: bool = True
    batch_size: int = 1000

    def plan(self) -> SourcePlan:
        """What the slots need to know."""
        return SourcePlan(
            bus=self.bus,
            topic="t",
            sets=SETS,
            bound_us=5 * SECOND,
            idle_s=IDLE_S,
            batch_size=self.batch_size,
            event_bytes_max=1 << 20,
            follow=self.follow,
            stop=self.stop,
            epoch_s=None,
            now=self.clock,
        )

    def write(self, partition: str, times: Sequence[float]) -> None:
        """Append an event for each time, seconds."""
        at = self.bus.end("t", partition)
        events = [
            {"entity_id": "x", "event_time": int(t * 1000), "sequence": at + i, "payload": {"a": t, "b": 1}}
            for i, t in enumerate(times)
        ]
        self.bus.append("t", partition, [Message(orjson.dumps(event)) for event in events], at=at)

    def touch(self, partition: str) -> None:
        """Make a partition that has no event yet."""
        self.bus.append("t", partition, [Message(b"")], at=0)
        self.bus._logs["t", partition].clear()

    def slot(self, number: int, resume: bytes | None = None) -> SignalSlot:
        """Open one slot."""
        return SignalSource(self.plan()).build_part("signals.read", f"slot-{number:02d}", resume)


def told(pieces: Sequence[Piece]) -> list[tuple[str, int, Status]]:
    """Partition, events and status of each piece."""
    return [(p.tick.partition, p.messages, p.tick.status) for p in pieces]


def drained(slot: SignalSlot, calls: int = 30) -> list[Piece]:
    """Everything that a slot gives until it has nothing now."""
    out: list[Piece] = []
    for _ in range(calls):
        more = slot.next_batch()
        if not more:
            return out
        out += more
    raise AssertionError(f"still reading after {calls} calls")
