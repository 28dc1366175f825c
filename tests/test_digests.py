"""Digests of feature rows: any order and cut give the same, and any change of the rows gives another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from operators.digests import DIGEST_KEY, Change, Digest, change, digest_rows, parse_change
from operators.errors import ConfigError, CorruptStoreError, RetryableError
from operators.feature_sets import FeatureSets
from operators.hashes import murmur3_bytes
from operators.rows import hash_table
from stores.offline.digests import digest_of, recomputed
from stores.offline.memory import MemoryOfflineStore
from stores.offline.port import EVERYTHING, PartitionKey, Selection
from tests.offline_rows import HOUR, KEY, MIDNIGHT, NEXT_DAY, SENSORS, SPEC, put, rows

SETS = FeatureSets((SENSORS,))
VALUES = st.none() | st.floats(allow_nan=False)
LINES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 22), VALUES), max_size=12)
"""Rows of one day: entity, hour, mean."""


def table(lines: Sequence[tuple[str, int, float | None]], **columns: Sequence[object]) -> pa.Table:
    """Rows with true content hashes; `columns` takes the place of some."""
    base = pa.concat_tables([rows([])] + [rows([entity], hour=hour) for entity, hour, _ in lines])
    base = with_column(base, "heat__mean", [mean for _, _, mean in lines])
    base = hashed(base)
    for name, values in columns.items():
        base = with_column(base, name, values)
    return base


def with_column(base: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    """The table with other values in one column."""
    field = base.schema.field(name)
    return base.set_column(base.schema.get_field_index(name), field, pa.array(values, field.type))


def hashed(base: pa.Table) -> pa.Table:
    """The table with the content hashes of its values."""
    return with_column(base, "content_hash", [h.tobytes() for h in hash_table(base, SENSORS, SPEC)])


def plain(base: pa.Table) -> Digest:
    """The digest as its definition says, a row at a time."""
    total = 0
    columns = (base["content_hash"], base["entity_id"], base["event_time"].cast(pa.int64()))
    for content, entity, time in zip(*(c.to_pylist() for c in columns), strict=True):
        mixed = murmur3_bytes(content + murmur3_bytes(entity.encode()) + time.to_bytes(8, "little"))
        total += int.from_bytes(mixed, "little")
    return Digest(base.num_rows, total % (1 << 128))


@given(lines=LINES, data=st.data())
def test_order_and_cut_leave_no_trace(lines: list[tuple[str, int, float | None]], data: st.DataObject) -> None:
    """Shuffled, cut anywhere and added up, the digest is that of the definition; parts can be taken out again."""
    base = table(lines)
    order = data.draw(st.permutations(range(len(lines))))
    cut = data.draw(st.integers(0, len(lines)))
    shuffled = base.take(pa.array(order, pa.int64()))
    one, two = shuffled.slice(0, cut), shuffled.slice(cut)
    assert digest_rows(base) == plain(base)
    assert digest_rows(one) + digest_rows(two) == digest_rows(base)
    assert digest_rows(base) - digest_rows(two) == digest_rows(one)
    assert change(one) + change(two) == Change(digest_rows(base))
    assert digest_rows(base) - digest_rows(base) == Digest()


@given(lines=LINES.filter(bool), data=st.data())
def test_a_row_that_is_doubled_or_gone_shows(lines: list[tuple[str, int, float | None]], data: st.DataObject) -> None:
    """One row twice, or one row less, gives another digest, and one that differs in the sum, not only in the count."""
    base = table(lines)
    index = data.draw(st.integers(0, len(lines) - 1))
    twice = pa.concat_tables([base, base.slice(index, 1)])
    less = pa.concat_tables([base.slice(0, index), base.slice(index + 1)])
    totals = {digest_rows(t).total for t in (base, twice, less)}
    assert len(totals) == 3
    assert digest_rows(pa.concat_tables([twice, base.slice(index, 1)])).total not in totals


def flipped(base: pa.Table, name: str, row: int, bit: int) -> pa.Table:
    """The table with one bit of one value changed in memory, as a bad disk would."""
    column = base[name].combine_chunks()
    data: NDArray[np.uint8] = np.frombuffer(column.buffers()[-1], np.uint8).copy()
    data[(64 * row + bit) // 8] ^= 1 << (bit % 8)
    buffers = [*column.buffers()[:-1], pa.py_buffer(data)]
    return base.set_column(
        base.schema.get_field_index(name),
        base.schema.field(name),
        pa.Array.from_buffers(column.type, len(column), buffers),
    )


@given(
    row=st.integers(0, 3),
    bit=st.integers(0, 63),
    name=st.sampled_from(["heat__mean", "heat__count", "window_start", "event_time"]),
)
def test_one_flipped_bit_of_any_value_shows(row: int, bit: int, name: str) -> None:
    """With hashes computed anew from the columns any bit of a value, a count or a time changes the digest."""
    base = table([("a", 0, 1.5), ("a", 1, -0.0), ("b", 0, 1e300), ("c", 3, 7.0)])
    wrong = flipped(base, name, row, bit)
    assert wrong["content_hash"].equals(base["content_hash"])
    anew = recomputed(SETS)
    assert digest_rows(base, hashes=anew(KEY, base)) == digest_rows(base)
    assert digest_rows(wrong, hashes=anew(KEY, wrong)) != digest_rows(base)
    if name == "event_time":
        assert digest_rows(wrong) != digest_rows(base)


def test_exchanged_contents_show() -> None:
    """Two rows whose content hashes were exchanged give another digest: a hash is bound to its row."""
    base = table([("a", 0, 1.0), ("b", 0, 2.0)])
    exchanged = with_column(base, "content_hash", base["content_hash"].to_pylist()[::-1])
    assert digest_rows(exchanged) != digest_rows(base)


HISTORIES = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.integers(0, 5)),
    st.tuples(st.lists(st.floats(0, 9), min_size=1, max_size=4), st.booleans()),
    max_size=8,
)
"""Of some rows the means of one revision after the other, and whether a last one retracts the row."""


def revisions(histories: dict[tuple[str, int], tuple[list[float], bool]]) -> tuple[pa.Table, pa.Table]:
    """All rows of the histories, each naming what it supersedes, and those that count in the end."""
    everything, canonical = [table([])], [table([])]
    for (entity, hour), (means, retracted) in histories.items():
        chain: list[pa.Table] = []
        for revision, mean in enumerate([*means, None] if retracted else means):
            row = table([(entity, hour, mean)], revision=[revision])
            row = with_column(row, "supersedes", chain[-1]["content_hash"].to_pylist() if chain else [None])
            chain.append(with_column(row, "retracted", [mean is None]))
        everything += chain
        canonical += [] if retracted else chain[-1:]
    return pa.concat_tables(everything), pa.concat_tables(canonical)


@given(histories=HISTORIES, data=st.data())
def test_revisions_leave_the_newest(
    histories: dict[tuple[str, int], tuple[list[float], bool]], data: st.DataObject
) -> None:
    """However revisions are spread over files, merged footers and a scan give the digest of the newest rows alone."""
    everything, canonical = revisions(histories)
    order = data.draw(st.permutations(range(everything.num_rows)))
    cuts = sorted(data.draw(st.sets(st.integers(0, everything.num_rows), max_size=3)) | {0, everything.num_rows})
    shuffled = everything.take(pa.array(order, pa.int64()))
    store, footers = MemoryOfflineStore(), Change()
    for sequence, (begin, end) in enumerate(pairwise(cuts)):
        part = shuffled.slice(begin, end - begin)
        footers += parse_change(change(part).encoded())
        put(store, "aa.0", sequence, part)
    assert footers.digest == plain(canonical)
    assert footers.revised == sum(len(means) - 1 + retracted for means, retracted in histories.values())
    expected = {KEY: plain(canonical)} if histories else {}
    assert digest_of(store) == expected
    assert digest_of(store, hashes=recomputed(SETS)) == expected


def test_a_digest_of_a_store_is_by_partition() -> None:
    """Each selected partition has its digest; stale hashes show only when they are computed anew."""
    store = MemoryOfflineStore()
    base = table([("a", 0, 1.0), ("b", 1, 2.0)])
    put(store, "aa.0", 0, base)
    other = hashed(rows(["a"], key=NEXT_DAY))
    put(store, "aa.0", 1, other, NEXT_DAY)
    assert digest_of(store) == {KEY: plain(base), NEXT_DAY: plain(other)}
    assert digest_of(store, Selection(date_first=NEXT_DAY.date)) == {NEXT_DAY: plain(other)}
    stale = MemoryOfflineStore()
    put(stale, "aa.0", 0, with_column(base, "heat__mean", [1.0, 2.5]))
    assert digest_of(stale)[KEY] == digest_of(store)[KEY]
    assert digest_of(stale, hashes=recomputed(SETS))[KEY] != digest_of(store)[KEY]


def test_undeclared_partitions_are_refused() -> None:
    """Rows of a feature set that is not declared cannot be hashed anew: a ConfigError names it."""
    store = MemoryOfflineStore()
    key = PartitionKey("sensors", 2, "1h", KEY.date)
    put(store, "aa.0", 0, rows(["a"], key=key), key)
    with pytest.raises(ConfigError, match="version 2"):
        digest_of(store, hashes=recomputed(SETS))


class GrowingStore(MemoryOfflineStore):
    """A store to which another process publishes a revision between two scans."""

    def scan(
        self, selection: Selection = EVERYTHING, *, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[PartitionKey, pa.Table]]:
        """Scan, then publish."""
        found = list(super().scan(selection, columns=columns))
        if columns == ["revision"]:
            put(self, "aa.0", 1, rows(["a"], revision=1))
        return iter(found)


def test_revisions_that_come_meanwhile_are_noticed() -> None:
    """A digest over half of a correction is never given out."""
    store = GrowingStore()
    put(store, "aa.0", 0, rows(["a", "b"]))
    with pytest.raises(RetryableError, match="published while"):
        digest_of(store)


@pytest.mark.parametrize(
    "encoded", [b"", b"{}", b"[]", b'{"rows":1,"digest":"xyz","revised":0}', b'{"rows":1,"digest":"-1","revised":0}']
)
def test_damaged_digests_are_refused(encoded: bytes) -> None:
    """What no `encoded` gave is a CorruptStoreError."""
    with pytest.raises(CorruptStoreError, match="digest"):
        parse_change(encoded)


def test_a_digest_is_kept_in_a_file_as_text() -> None:
    """The form in a file's metadata is JSON that people can compare."""
    base = table([("a", 0, 1.0)])
    kept = change(base)
    assert DIGEST_KEY == b"headrace.digest"
    assert kept.encoded() == b'{"rows":1,"digest":"%s","revised":0}' % kept.digest.text.encode()
    assert parse_change(kept.encoded()) == kept
    assert len(kept.digest.text) == 32
    assert MIDNIGHT % HOUR == 0
