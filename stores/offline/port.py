"""What an offline store promises: the feature history, each row exactly once, whatever is killed and when.

A *writer* is one partition of a sink, named `<lineage>.<part>`. A *lineage* is everything that
descends from one recovery folder; a backfill is a lineage of its own. Within a lineage the caller
never writes a row twice, because its recovery snapshots forbid it. Between lineages the store
watches: a row, known by (partition, entity_id, event_time, revision), that another lineage has
published is withheld.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date as calendar_date
from typing import Protocol

import pyarrow as pa

from operators.errors import ConfigError

_FEATURE_SET = re.compile(r"[a-z][a-z0-9_]{0,62}")
_WINDOW = re.compile(r"(session:)?[1-9][0-9]{0,8}(ms|s|m|h|d)(_[1-9][0-9]{0,8}(ms|s|m|h|d))?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_WRITER = re.compile(r"[a-z0-9]{1,32}\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

SEQUENCE_MAX = 10**12 - 1
"""Highest number a writer may give to what it stages."""

MERGED_PART = "merged"
"""The part name that compaction writes under; no caller may use it."""

BATCH_PART = "batch"
"""The part name of backfills: what one has staged lasts no longer than its process."""


@dataclass(frozen=True, slots=True, order=True)
class PartitionKey:
    """One folder of the feature history; keys sort by feature set, version, window, date.

    window: the spec as it stands in paths (`WindowSpec.folder`). date: `YYYY-MM-DD`, the UTC date
    of event_time. Raises ConfigError for a value that could not be a name in a path.
    """

    feature_set: str
    version: int
    window: str
    date: str

    def __post_init__(self) -> None:
        """Refuse what must not become a path."""
        if not _FEATURE_SET.fullmatch(self.feature_set):
            raise ConfigError(f"feature set `{self.feature_set}` must be lower-case letters, digits and _")
        if not 0 < self.version < 1 << 31:
            raise ConfigError(f"version `{self.version}` must be a whole number above 0")
        if not _WINDOW.fullmatch(self.window):
            raise ConfigError(f"window `{self.window}` must be a spec with `_` for `/`, as `5s` or `1m_10s`")
        if not _is_date(self.date):
            raise ConfigError(f"date `{self.date}` must be a day of the calendar, as `2026-01-31`")


@dataclass(frozen=True, slots=True)
class Selection:
    """Partitions to look at; None takes all. Dates are inclusive, `YYYY-MM-DD`."""

    feature_set: str | None = None
    version: int | None = None
    window: str | None = None
    date_first: str | None = None
    date_last: str | None = None

    def takes(self, key: PartitionKey) -> bool:
        """Whether the partition is selected."""
        return (
            self.feature_set in (None, key.feature_set)
            and self.version in (None, key.version)
            and self.window in (None, key.window)
            and (self.date_first is None or self.date_first <= key.date)
            and (self.date_last is None or key.date <= self.date_last)
        )


EVERYTHING = Selection()
"""Selects every partition."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """Rows that were not written again, since another lineage has published them.

    repeated: with the same content_hash. different: with another one; the published row stays.
    """

    repeated: int = 0
    different: int = 0

    def __add__(self, other: Withheld) -> Withheld:
        """Add up two counts."""
        return Withheld(self.repeated + other.repeated, self.different + other.different)


@dataclass(frozen=True, slots=True)
class Staged:
    """What one call of `stage` did: rows is what was written, withheld what was not."""

    tokens: tuple[str, ...]
    rows: int
    withheld: Withheld


class OfflineStore(Protocol):
    """Feature history in two steps: staged rows are durable and invisible, published rows are visible.

    A caller keeps the tokens of `stage` in its snapshot and publishes them once that snapshot is
    committed; after a restart it discards what the snapshot does not know and publishes what it
    does. Then each row is visible exactly once. Methods raise ValueError once the store is closed,
    FatalError when the disk is full or fails, ConfigError when permission is missing. Several
    threads and processes may use one store as long as each writer has one user at a time.
    """

    def stage(self, writer: str, sequence: int, tables: Mapping[PartitionKey, pa.Table]) -> Staged:
        """Write the rows where no reader sees them; durable when it returns.

        tables: `feature_row_schema` columns; all event_times of a table lie on the key's date. Rows
        are kept in their order; an empty table writes nothing. Tokens are short strings. Repeating
        a (writer, sequence) replaces what it staged before. Rows that another lineage has published
        are withheld. After an error nothing is visible and the call may be repeated.
        Raises ValueError for tables of another shape, ConfigError for a bad writer name, ResumeError
        if this writer has published that sequence already (its recovery folder is too old).
        """
        ...

    def publish(self, tokens: Sequence[str]) -> Withheld:
        """Make staged rows visible, a file at a time, each atomically; durable when it returns.

        What is published already stays as it is, so the call may be repeated after any crash. Rows
        that another lineage published since they were staged are withheld and counted.
        Raises CorruptStoreError for a token that was neither staged nor published, ResumeError for
        one that is both.
        """
        ...

    def discard(self, writer: str, keep: Sequence[str]) -> None:
        """Remove what the writer has staged, other than `keep`: the leftovers of a lost epoch.

        Published rows are not touched. Safe to repeat; an unknown writer has nothing staged.
        """
        ...

    def scan(
        self, selection: Selection = EVERYTHING, *, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[PartitionKey, pa.Table]]:
        """Yield the published rows in tables of bounded size; every row exactly once.

        Order: by key, then writer and sequence, then as the rows were staged (sorted by entity_id,
        event_time and revision where compacted). What is published meanwhile may or may not be seen.
        columns: those to read, in this order, or None for all.
        Raises CorruptStoreError for a file that cannot be read, KeyError for a column that one lacks.
        """
        ...

    def forget(self, entity_id: str) -> int:
        """Take out the entity's rows, staged ones too; return how many there were. Safe to repeat, and after a kill.

        Rows of others stay as they are: readers see each once at any moment, and tokens stay good. Raises
        RetryableError while others change or read the same files for too long.
        """
        ...

    def close(self) -> None:
        """Let go of what is held; staged rows stay staged. Safe to repeat."""
        ...


def check_writer(writer: str) -> None:
    """Raise ConfigError unless the name is `<lineage>.<part>` and may become a name in a path."""
    if not _WRITER.fullmatch(writer) or writer.partition(".")[2] == MERGED_PART:
        raise ConfigError(
            f"writer `{writer}` must be `<lineage>.<part>`: lower-case letters and digits, a dot, then letters,"
            f" digits and `_.-`; the part `{MERGED_PART}` is taken"
        )


def check_tables(writer: str, sequence: int, tables: Mapping[PartitionKey, pa.Table]) -> None:
    """Raise what `OfflineStore.stage` promises to raise for its arguments alone."""
    check_writer(writer)
    if not 0 <= sequence <= SEQUENCE_MAX:
        raise ValueError(f"sequence {sequence} of writer `{writer}` is not between 0 and {SEQUENCE_MAX}")
    for key, table in tables.items():
        names = table.column_names
        missing = {"entity_id", "window_start", "event_time", "revision", "content_hash"}.difference(names)
        if missing or "window" in names or "date" in names:
            raise ValueError(f"rows of {key} lack {sorted(missing)}, or hold `window` or `date`, which the path holds")
        if table.num_rows == 0:
            continue
        times = table["event_time"].combine_chunks().cast(pa.timestamp("us")).view(pa.int64()).to_numpy()
        midnight = calendar_date.fromisoformat(key.date).toordinal() - _EPOCH_ORDINAL
        if not midnight * _DAY_US <= times.min() <= times.max() < (midnight + 1) * _DAY_US:
            raise ValueError(f"rows of {key} have an event_time on another date")


def lineage_of(writer: str) -> str:
    """The lineage that a writer (or the name of its file) belongs to."""
    return writer.partition(".")[0]


def part_of(writer: str) -> str:
    """The part of its sink that a writer is."""
    return writer.partition(".")[2]


_DAY_US = 86_400_000_000
_EPOCH_ORDINAL = calendar_date(1970, 1, 1).toordinal()


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        calendar_date.fromisoformat(text)
    except ValueError:
        return False
    return True
