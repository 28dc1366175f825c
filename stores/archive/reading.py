"""Reading the archive in bounded memory: by date, entity and place in the log, and as the log itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.records import TIMESTAMP, RawChunk
from stores.archive.port import (
    ALL,
    FINAL,
    FIRST,
    MESSAGES,
    Archive,
    ArchiveSelection,
    First,
    Segment,
    Verdict,
)
from stores.offline.port import lineage_of

CACHED_VERDICTS = 16
"""Segments of verdicts that are kept: the messages beside each other need the same ones."""

JUDGED = MESSAGES.append(pa.field("known_at", TIMESTAMP))
"""Columns of `judged`: verdict is one of FINAL. known_at: since when, null if it was known at reading."""

_FINAL_OF_FIRST = np.array([Verdict.USED, Verdict.LATE, Verdict.DEAD], np.int32)
_NEVER = np.iinfo(np.int64).min


def scan(
    archive: Archive, selection: ArchiveSelection = ALL, *, columns: Sequence[str] | None = None
) -> Iterator[tuple[Segment, pa.Table]]:
    """Yield the selected messages as they were archived, of a segment each: at most GROUP_ROWS in memory.

    Order: by date, writer, sequence and index of the segment; within one partition of a segment by offset.
    For an entity only the column of entities is read where it is not in the segment.
    """
    wanted = list(MESSAGES.names if columns is None else columns)
    for segment in archive.segments("signals", selection):
        picked = _picked(archive, segment, selection)
        if picked is None:
            yield segment, archive.read(segment, wanted)
        elif len(picked):
            yield segment, archive.read(segment, wanted).take(pa.array(picked))


def judged(archive: Archive, selection: ArchiveSelection = ALL) -> Iterator[pa.Table]:
    """Yield the selected messages in tables of JUDGED, each with what became of it in the end; order as of `scan`.

    The newest verdict counts. That a message was late at its shard (`idle`, `closed`) was true of one run only:
    as such a verdict counts for messages that the same lineage archived.
    """

    @lru_cache(CACHED_VERDICTS)
    def verdicts(found: Segment) -> pa.Table:
        return archive.read(found)

    for key, group in groupby(scan(archive, selection), key=lambda item: item[0].key):
        later = archive.segments("verdicts", ArchiveSelection(key.date, key.date))
        for segment, rows in group:
            near = [_of_lineage(verdicts(s), s, segment) for s in later if _touches(s, segment)]
            yield _judge(rows, near)


def refused_rows(archive: Archive) -> dict[str, NDArray[np.int64]]:
    """Rows of messages of many signals that count for nothing, int64 (n, 2) of offset and row, rising, by partition.

    Late ones, of which some may have been held and released since, and those that are no signals. What was late at its
    shard counts as of `judged`.
    """
    archived: dict[tuple[str, int], str] = {}
    found: dict[str, set[tuple[int, int]]] = {}
    for segment in archive.segments("verdicts"):
        some = archive.read(segment)
        some = some.filter(pc.is_valid(some["row"]))
        if some.num_rows and not archived:
            archived = _lineages(archive)
        names = ("partition", "offset", "row", "verdict")
        for partition, offset, row, verdict in zip(*(some[name].to_pylist() for name in names), strict=True):
            mine = archived.get((partition, offset)) == lineage_of(segment.writer)
            if mine or verdict != FINAL[Verdict.LATE]:
                found.setdefault(partition, set()).add((offset, row))
    return {partition: np.array(sorted(places), np.int64) for partition, places in found.items()}


def _lineages(archive: Archive) -> dict[tuple[str, int], str]:
    """Place of each message of many signals → the lineage that archived it."""
    out: dict[tuple[str, int], str] = {}
    for segment, rows in scan(archive, columns=["partition", "offset", "rows"]):
        many = rows.filter(pc.is_valid(rows["rows"]))
        places = zip(many["partition"].to_pylist(), many["offset"].to_pylist(), strict=True)
        out |= dict.fromkeys(places, lineage_of(segment.writer))
    return out


def refused(archive: Archive, selection: ArchiveSelection = ALL) -> dict[str, NDArray[np.int64]]:
    """Offsets of messages that count for nothing in the end, late or dead, rising, by partition.

    As `judged` says, without reading the messages. Of the selection dates and offsets count, as far as segments go.
    Of messages of many signals only dead ones are named; see `refused_rows`.
    """
    found: dict[str, list[NDArray[np.int64]]] = {}
    later = archive.segments("verdicts", selection)
    for segment in archive.segments("signals", selection):
        near = [
            _of_lineage(archive.read(s), s, segment)
            for s in later
            if s.key.date == segment.key.date and _touches(s, segment)
        ]
        if not near and _all_accepted(archive.read(segment, ["verdict"])["verdict"]):
            continue
        rows = archive.read(segment, ["partition", "offset", "verdict", "rows"])
        verdict = _FINAL_OF_FIRST[_codes(rows["verdict"], FIRST)]
        one = pc.is_null(rows["rows"]).to_numpy()
        if sum(table.num_rows for table in near):
            verdicts = pa.concat_tables(near)
            at, of = _newest(rows, verdicts)
            verdict[at[one[at]]] = _codes(verdicts["verdict"], FINAL)[of[one[at]]]
        gone = rows.filter(pa.array((verdict == Verdict.LATE) & one | (verdict == Verdict.DEAD)))
        for name in pc.unique(gone["partition"].cast(pa.string())).to_pylist():
            mine = gone.filter(pc.equal(gone["partition"].cast(pa.string()), name))
            found.setdefault(name, []).append(mine["offset"].to_numpy())
    return {name: np.sort(np.concatenate(offsets)) for name, offsets in found.items()}


def _all_accepted(verdicts: pa.ChunkedArray) -> bool:
    words = {word for chunk in verdicts.chunks for word in chunk.dictionary.to_pylist()}
    return words <= {FIRST[First.ACCEPTED]}


def count_before(archive: Archive, ends: Mapping[str, int]) -> dict[str, int]:
    """How many signals and refused messages or rows of each partition are archived before that offset, exclusive."""
    out = dict.fromkeys(ends, 0)
    for segment in archive.segments("signals"):
        one = segment.partition_first
        if one == segment.partition_last and segment.offset_last < ends.get(one, 0):
            out[one] += int(_counts(archive.read(segment, ["rows"])).sum())
            continue
        rows = archive.read(segment, ["partition", "offset", "rows"])
        names, offsets, counts = rows["partition"].cast(pa.string()), rows["offset"].to_numpy(), _counts(rows)
        for name in set(pc.unique(names).to_pylist()) & set(ends):
            mine = pc.equal(names, name).to_numpy()
            out[name] += int(counts[mine][offsets[mine] < ends[name]].sum())
    return out


def _counts(rows: pa.Table) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = pc.fill_null(rows["rows"], 1).to_numpy().astype(np.int64)
    return counts


def partitions(archive: Archive, selection: ArchiveSelection = ALL) -> tuple[str, ...]:
    """The partitions that have a message in the selection's dates and offsets, sorted."""
    names: set[str] = set()
    for segment in archive.segments("signals", selection):
        if segment.partition_first == segment.partition_last:
            names.add(segment.partition_first)
        else:
            names.update(pc.unique(archive.read(segment, ["partition"])["partition"].cast(pa.string())).to_pylist())
    return tuple(sorted(n for n in names if selection.partition in (None, n)))


def messages_of_partition(archive: Archive, partition: str, selection: ArchiveSelection = ALL) -> Iterator[RawChunk]:
    """Yield the partition's selected messages in the order of its log, as the bus gave them.

    Segments that overlap (days that mix, files of several lineages) are merged; those held at once are those that do.
    selection: dates, offsets and entity; its partition is not looked at.
    """
    chosen = ArchiveSelection(
        selection.date_first,
        selection.date_last,
        partition,
        selection.offset_first,
        selection.offset_last,
        selection.entity_id,
    )
    held: list[pa.Table] = []
    for segment in sorted(archive.segments("signals", chosen), key=lambda s: (s.offset_first, s.offset_last)):
        yield from _until(partition, held, segment.offset_first)
        picked = _picked(archive, segment, chosen)
        rows = archive.read(segment, ["offset", "taken_at", "value"])
        if picked is not None:
            rows = rows.take(pa.array(picked))
        if rows.num_rows:
            held.append(rows.combine_chunks())
    yield from _until(partition, held, None)


class PartitionInput:
    """An archived partition as the input of a batch run: the messages and offsets of the bus."""

    def __init__(self, archive: Archive, partition: str, selection: ArchiveSelection = ALL) -> None:
        """Stand at the first selected message. selection: see `messages_of_partition`."""
        self._chunks = messages_of_partition(archive, partition, selection)
        self._chunk: RawChunk | None = None
        self._at = 0
        self._bytes = 0
        self._reported = 0

    def poll(self, events_max: int) -> RawChunk | None:
        """Return the next 1 to `events_max` messages, or None at the end."""
        while self._chunk is None or self._at == len(self._chunk.offsets):
            self._chunk, self._at = next(self._chunks, None), 0
            if self._chunk is None:
                return None
        part = slice(self._at, min(self._at + events_max, len(self._chunk.offsets)))
        self._at = part.stop
        whole = self._chunk
        self._bytes += int(whole.lengths[part].sum())
        taken = None if whole.timestamps is None else whole.timestamps[part]
        columns = (whole.starts[part], whole.lengths[part], whole.offsets[part])
        return RawChunk(whole.partition, whole.data, *columns, taken)

    def advanced(self) -> int:
        """Return how many bytes of messages were given since the last call."""
        more, self._reported = self._bytes - self._reported, self._bytes
        return more

    def close(self) -> None:
        """Nothing is held open between calls."""


def _picked(archive: Archive, segment: Segment, selection: ArchiveSelection) -> NDArray[np.int64] | None:
    """Places of the selected messages in the segment, None for all of them; reads no more than it must."""
    masks = []
    if selection.partition is not None and segment.partition_first != segment.partition_last:
        masks.append(_equal(archive, segment, "partition", selection.partition))
    if selection.entity_id is not None:
        many = pc.is_valid(archive.read(segment, ["rows"])["rows"]).to_numpy()
        masks.append(_equal(archive, segment, "entity_id", selection.entity_id) | many)
    first, last = selection.offset_first, selection.offset_last
    if (first is not None and segment.offset_first < first) or (last is not None and segment.offset_last > last):
        offsets = archive.read(segment, ["offset"])["offset"].to_numpy()
        masks += [] if first is None else [offsets >= first]
        masks += [] if last is None else [offsets <= last]
    return np.flatnonzero(np.logical_and.reduce(masks)) if masks else None


def _equal(archive: Archive, segment: Segment, column: str, value: str) -> NDArray[np.bool_]:
    found = pc.equal(archive.read(segment, [column])[column].cast(pa.string()), value)
    mask: NDArray[np.bool_] = pc.fill_null(found, False).to_numpy()  # noqa: FBT003  # the value of a column
    return mask


def _until(partition: str, held: list[pa.Table], bound: int | None) -> Iterator[RawChunk]:
    """Yield what is held below the offset (None: all) as one chunk in order, and go on holding the rest."""
    ready, kept = [], []
    for rows in held:
        cut = rows.num_rows if bound is None else int(np.searchsorted(rows["offset"].to_numpy(), bound))
        ready += [rows.slice(0, cut)] if cut else []
        kept += [rows.slice(cut)] if cut < rows.num_rows else []
    held[:] = kept
    if not ready:
        return
    rows = pa.concat_tables(ready).combine_chunks()
    offsets, values = rows["offset"].to_numpy(), rows["value"].combine_chunks()
    order = np.argsort(offsets) if len(ready) > 1 else slice(None)
    edges = np.frombuffer(values.buffers()[1], np.int32)[values.offset :][: len(values) + 1].astype(np.int64)
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)
    taken = None
    if rows["taken_at"].null_count < len(offsets):
        taken = pc.fill_null(rows["taken_at"].cast(pa.int64()), -1).to_numpy()[order]
    yield RawChunk(partition, data, edges[:-1][order], np.diff(edges)[order], offsets[order], taken)


def _touches(verdicts: Segment, messages: Segment) -> bool:
    return (
        verdicts.partition_first <= messages.partition_last
        and messages.partition_first <= verdicts.partition_last
        and verdicts.offset_first <= messages.offset_last
        and messages.offset_first <= verdicts.offset_last
    )


def _of_lineage(rows: pa.Table, verdicts: Segment, messages: Segment) -> pa.Table:
    if lineage_of(verdicts.writer) == lineage_of(messages.writer):
        return rows
    return rows.filter(pc.not_equal(rows["verdict"].cast(pa.string()), FINAL[Verdict.LATE]))


def _judge(rows: pa.Table, later: list[pa.Table]) -> pa.Table:
    """The messages with their first verdicts replaced by the newest of the later ones."""
    verdict = _FINAL_OF_FIRST[_codes(rows["verdict"], FIRST)]
    known_at = np.full(rows.num_rows, _NEVER, np.int64)
    reason = rows["reason"]
    later = [whole for table in later if (whole := table.filter(pc.is_null(table["row"]))).num_rows]
    if later:
        found = pa.concat_tables(later)
        at, of = _newest(rows, found)
        one = pc.is_null(rows["rows"]).to_numpy()[at]  # of a message of many nobody knows which row is meant
        at, of = at[one], of[one]
        verdict[at] = _codes(found["verdict"], FINAL)[of]
        known_at[at] = found["known_at"].cast(pa.int64()).to_numpy()[of]
        places = np.arange(rows.num_rows)
        places[at] = rows.num_rows + of
        reason = pa.chunked_array([*reason.chunks, *found["reason"].chunks]).take(pa.array(places))
    words = pa.DictionaryArray.from_arrays(pa.array(verdict), pa.array(FINAL))
    rows = rows.set_column(MESSAGES.get_field_index("verdict"), JUDGED.field("verdict"), words)
    rows = rows.set_column(MESSAGES.get_field_index("reason"), JUDGED.field("reason"), reason)
    since = pa.array(known_at, mask=known_at == _NEVER).cast(TIMESTAMP)
    return rows.append_column(JUDGED.field("known_at"), since)


def _newest(rows: pa.Table, later: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of messages that have a later verdict, and places of the newest verdict of each."""
    names = pc.unique(rows["partition"].cast(pa.string())).to_pylist()
    mine, theirs = _codes(rows["partition"], names), _codes(later["partition"], names)
    offset, wanted = later["offset"].to_numpy(), rows["offset"].to_numpy()
    known = later["known_at"].cast(pa.int64()).to_numpy()
    order = np.lexsort((_codes(later["verdict"], FINAL), known, offset, theirs))
    places, found = [], []
    for code in range(len(names)):
        of = order[theirs[order] == code]
        if len(of) == 0:
            continue
        of = of[np.append(np.diff(offset[of]) != 0, True)]
        at = np.flatnonzero(mine == code)
        slot = np.searchsorted(offset[of], wanted[at])
        hit = (slot < len(of)) & (offset[of][np.minimum(slot, len(of) - 1)] == wanted[at])
        places.append(at[hit])
        found.append(of[slot[hit]])
    empty = [np.empty(0, np.int64)]
    return np.concatenate(places or empty), np.concatenate(found or empty)


def _codes(column: pa.ChunkedArray, words: Sequence[str]) -> NDArray[np.int64]:
    """Place of each value in `words`, -1 for one that is not there."""
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(words, pa.string()))
    codes: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return codes
