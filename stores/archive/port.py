"""What an archive promises: every message of a topic as it came, each once, and what became of it.

Two kinds of tables. `signals` holds the messages with the verdict of the one who read them: accepted,
late or dead. What is found out later, where events are applied, comes as `verdicts`: further rows
(partition, offset, verdict, known_at) of which the newest counts. A message is `used` unless one says
otherwise; `stores.archive.reading.judged` joins the two, so that each message has one final verdict. Of a message of
many signals that is the verdict on the whole; which of its rows count for nothing, `refused_rows` says.

Both are staged and published as feature rows are (`stores.offline.port`): a writer is `<lineage>.<part>`, what
it stages is durable and invisible, its tokens go into the snapshot, and are published once that is durable.
A lineage archives a message once, because its snapshots forbid more. Between lineages the archive watches:
a message, known by (partition, offset), that another lineage has published on that date is withheld.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date as calendar_date
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import ConfigError
from operators.records import TIMESTAMP
from stores.offline.port import SEQUENCE_MAX, Withheld, check_writer

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

Kind = Literal["signals", "verdicts"]


class First(IntEnum):
    """Verdict of the reader of a partition: decided by its own log alone."""

    ACCEPTED = 0
    LATE = 1
    DEAD = 2


class Verdict(IntEnum):
    """What became of a message in the end."""

    USED = 0
    DUPLICATE = 1
    CONFLICT = 2
    LATE = 3
    DEAD = 4


FIRST = tuple(v.name.lower() for v in First)
FINAL = tuple(v.name.lower() for v in Verdict)

_WORD = pa.dictionary(pa.int32(), pa.string())

MESSAGES = pa.schema(
    [
        pa.field("partition", _WORD, nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("taken_at", pa.timestamp("ms", tz="UTC")),
        pa.field("event_time", TIMESTAMP),
        pa.field("entity_id", pa.string()),
        pa.field("verdict", _WORD, nullable=False),
        pa.field("reason", pa.string()),
        pa.field("rows", pa.int32()),
        pa.field("value", pa.binary(), nullable=False),
    ]
)
"""Columns of `signals`. taken_at is when the bus took the message, null where it did not note that; event_time and
entity_id are null for dead messages, reason for accepted ones; value is the message as it came. rows: how many signals
and refused rows a message of many holds, null for one of its own; such a message is accepted if one of its rows is,
late if all good ones are, its event_time is that of its first good row, and its entity_id is null. The date of a file
is the UTC day of event_time; of a dead message, the day of its partition's newest event before it (1970-01-01 before
the first): a function of the log."""

VERDICTS = pa.schema(
    [
        pa.field("partition", _WORD, nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int32()),
        pa.field("event_time", TIMESTAMP, nullable=False),
        pa.field("verdict", _WORD, nullable=False),
        pa.field("reason", pa.string()),
        pa.field("known_at", TIMESTAMP, nullable=False),
    ]
)
"""Columns of `verdicts`. row: which one of a message of many, null for all others, and where nobody knows it any more.
event_time: of the message, so both lie on one date; of a row that was late at its shard, its own. known_at: the event
time, by watermark, at which it became so; rising for each message."""

SCHEMAS: dict[Kind, pa.Schema] = {"signals": MESSAGES, "verdicts": VERDICTS}


@dataclass(frozen=True, slots=True, order=True)
class ArchiveKey:
    """One folder of the archive. date: `YYYY-MM-DD`. Raises ConfigError for what must not become a path."""

    kind: Kind
    date: str

    def __post_init__(self) -> None:
        """Refuse what must not become a path."""
        if self.kind not in SCHEMAS:
            raise ConfigError(f"kind `{self.kind}` must be one of {', '.join(SCHEMAS)}")
        try:
            calendar_date.fromisoformat(self.date if _DATE.fullmatch(self.date) else "")
        except ValueError:
            raise ConfigError(f"date `{self.date}` must be a day of the calendar, as `2026-01-31`") from None


@dataclass(frozen=True, slots=True)
class ArchiveSelection:
    """Messages to look at; None takes all. Dates and offsets are inclusive, dates `YYYY-MM-DD`.

    entity_id: messages of many signals are taken too, since any may have one of the entity's.
    """

    date_first: str | None = None
    date_last: str | None = None
    partition: str | None = None
    offset_first: int | None = None
    offset_last: int | None = None
    entity_id: str | None = None

    def takes_date(self, date: str) -> bool:
        """Whether messages of that date are selected."""
        return (self.date_first is None or self.date_first <= date) and (
            self.date_last is None or date <= self.date_last
        )

    def may_take(self, segment: Segment) -> bool:
        """Whether the segment can hold a message that is selected."""
        return (
            self.takes_date(segment.key.date)
            and (self.partition is None or segment.partition_first <= self.partition <= segment.partition_last)
            and (self.offset_first is None or self.offset_first <= segment.offset_last)
            and (self.offset_last is None or segment.offset_first <= self.offset_last)
        )


ALL = ArchiveSelection()
"""Selects every message."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of published rows that is read at once: a row group of a file. rows: at least 1.

    writer, sequence: the file's. partition_*, offset_*: the lowest and the highest of any row in it; where it
    holds one partition, its rows stand in the order of the log.
    """

    key: ArchiveKey
    writer: str
    sequence: int
    index: int
    rows: int
    partition_first: str
    partition_last: str
    offset_first: int
    offset_last: int


class StagedFile(Protocol):
    """Rows of one key on their way to where no reader sees them. Used by one thread at a time."""

    def write(self, rows: pa.Table) -> None:
        """Append rows of the key's schema, at least one, as one segment. Their memory may be used again afterwards.

        Raises FatalError when the disk is full or fails, ConfigError when permission is missing.
        """
        ...

    def finish(self) -> str:
        """Make the rows durable and return the token to publish them by. Raises as `write` does."""
        ...

    def abandon(self) -> None:
        """Let go; what was written is removed by the writer's next `discard`. Safe to repeat, and after `finish`."""
        ...


Takes = Callable[[pa.Table], NDArray[np.bool_]]
"""Says which rows of MESSAGES are to be blanked, bool (n,)."""

Mends = Callable[[bytes], bytes | None]
"""Gives a message of many signals without those that are to go, in which all others have their rows still; None if
there are none of them."""


def nothing(message: bytes) -> None:
    """Mends no message."""
    del message


class Archive(Protocol):
    """All messages in two steps: staged ones are durable and invisible, published ones are visible.

    Methods raise ValueError once the archive is closed, FatalError when the disk is full or fails, ConfigError
    when permission is missing. Several threads and processes may use one archive as long as each writer has one
    user at a time.
    """

    def stage(self, writer: str, sequence: int, key: ArchiveKey) -> StagedFile:
        """Begin a file; what was staged under that writer, sequence and key before is replaced.

        Raises ConfigError for a bad writer name, ValueError for a bad sequence.
        """
        ...

    def merge(self, tokens: Sequence[str], sequence: int) -> str:
        """Stage the rows of small staged files of one writer and key as one file; return its token.

        The small ones stay staged until `discard`: whoever resumes from a snapshot that knows only them publishes them.
        Raises CorruptStoreError for a token that is not staged.
        """
        ...

    def publish(self, tokens: Sequence[str]) -> Withheld:
        """Make staged files visible, each atomically; durable when it returns. May be repeated after any crash.

        Messages that another lineage has published on that date are withheld and counted, by whether their bytes
        are the same; the published ones stay. Verdicts are never withheld.
        Raises CorruptStoreError for a token that was neither staged nor published, ResumeError for one that is both.
        """
        ...

    def discard(self, writer: str, keep: Sequence[str]) -> None:
        """Remove what the writer has staged, other than `keep`: the leftovers of a lost epoch. Safe to repeat."""
        ...

    def segments(self, kind: Kind, selection: ArchiveSelection = ALL) -> list[Segment]:
        """The published segments that can hold a selected message, by date, writer, sequence and index.

        Raises CorruptStoreError for a file that cannot be read.
        """
        ...

    def read(self, segment: Segment, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a segment, with these columns, or all of them.

        Raises CorruptStoreError for a file that is gone or cannot be read, KeyError for an unknown column.
        """
        ...

    def blank(self, takes: Takes, mends: Mends = nothing) -> int:
        """Leave of these messages, staged ones too, that there was one: dead, forgotten, without bytes and entity.

        What was found out about them later goes. Messages of many signals become what `mends` gives, and are not asked
        of `takes`. Return how many there were. Safe to repeat, and after a kill; other
        messages and the segments they are in stay as they are.
        """
        ...

    def close(self) -> None:
        """Let go of what is held; staged files stay staged. Safe to repeat."""
        ...


def check_stage(writer: str, sequence: int) -> None:
    """Raise what `Archive.stage` promises to raise for its arguments alone."""
    check_writer(writer)
    if not 0 <= sequence <= SEQUENCE_MAX:
        raise ValueError(f"sequence {sequence} of writer `{writer}` is not between 0 and {SEQUENCE_MAX}")
