"""What every store promises of being told to forget: an entity, a document, letters, and no byte of them is left."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from operators.errors import RetryableError
from stores.archive import open_archive
from stores.archive.columns import message_table, owned, verdict_table
from stores.archive.port import Verdict
from stores.deadletters import open_dead_letters
from stores.holding import open_holding
from stores.holding.port import HeldEvent
from stores.metadata import open_metadata
from stores.metadata.records import Delete
from stores.offline import open_offline
from stores.offline.compact import compact
from stores.offline.disk import locked
from stores.offline.layout import Layout
from stores.vectors import open_vectors
from tests.archive_rows import DAY, LATER, event, outcomes, places, put, raw_chunk, read_chunk, verdicts
from tests.contracts.test_deadletters import letter
from tests.contracts.test_metadata import SPACE, upsert
from tests.offline_rows import NEXT_DAY, entities_of, rows
from tests.offline_rows import put as put_rows
from tests.vector_rows import DIM, holds, keys, row
from tests.vector_rows import put as put_vectors

WHO = "zyxq-unmistakable-7"


def left_in(folder: Path, *words: str) -> list[str]:
    """Names of the files that hold any of the words, as bytes."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [str(p.relative_to(folder)) for p in found if any(w.encode() in p.read_bytes() for w in words)]


@pytest.fixture(params=["memory", "parquet"])
def folder_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store of files is opened."""
    return "memory:" if request.param == "memory" else f"parquet:///{tmp_path}/store"


@pytest.fixture(params=["memory", "sqlite"])
def file_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store in one file is opened."""
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/store.db"


def test_an_entity_leaves_the_history(folder_url: str, tmp_path: Path) -> None:
    """Published, compacted and staged rows go, all others stay; staged tokens stay good; twice is once."""
    store = open_offline(folder_url)
    put_rows(store, "aa.0", 0, rows(["a", WHO, "b"]))
    put_rows(store, "aa.0", 1, rows([WHO], hour=1))
    if folder_url != "memory:":
        compact(tmp_path / "store")
    put_rows(store, "aa.1", 0, rows(["c", WHO], key=NEXT_DAY), NEXT_DAY)
    put_rows(store, "bb.0", 0, rows([WHO], hour=2))
    staged = store.stage("aa.0", 2, {NEXT_DAY: rows([WHO, "d"], key=NEXT_DAY)})
    only = store.stage("aa.1", 3, {NEXT_DAY: rows([WHO], key=NEXT_DAY, hour=1)})
    assert store.forget(WHO) == 6
    assert store.forget(WHO) == 0
    assert left_in(tmp_path, WHO) == []
    store.publish([*staged.tokens, *only.tokens])
    assert sorted(entities_of(store)) == ["a", "b", "c", "d"]
    store.publish([*staged.tokens, *only.tokens])
    assert sorted(entities_of(store)) == ["a", "b", "c", "d"]


def test_files_that_were_published_are_known_still(tmp_path: Path) -> None:
    """A crash between publishing and snapshot, then an erasure: the tokens are published once more without effect."""
    store = open_offline(f"parquet:///{tmp_path}/store")
    staged = store.stage("aa.0", 0, {NEXT_DAY: rows([WHO, "a"], key=NEXT_DAY)})
    store.publish(staged.tokens)
    store.forget(WHO)
    store.publish(staged.tokens)
    assert entities_of(store) == ["a"]


def test_nothing_is_erased_beside_others_that_write(tmp_path: Path) -> None:
    """While a compaction or a backfill is at work the store says so and changes nothing."""
    store = open_offline(f"parquet:///{tmp_path}/store")
    put_rows(store, "aa.0", 0, rows([WHO]))
    layout = Layout(tmp_path / "store")
    with locked(layout.lock("compact")), pytest.raises(RetryableError, match="compaction"):
        store.forget(WHO)
    with locked(layout.lock("cc.batch")), pytest.raises(RetryableError, match="backfill"):
        store.forget(WHO)
    assert entities_of(store) == [WHO]


def named(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Messages of the entity, dead ones by their bytes."""
    mine = pc.fill_null(pc.equal(table["entity_id"], WHO), False).to_pylist()  # noqa: FBT003  # a value
    return np.array(mine, np.bool_) | np.array(
        [WHO.encode() in value for value in table["value"].to_pylist()], np.bool_
    )


def test_messages_are_blanked_in_the_archive(folder_url: str, tmp_path: Path) -> None:
    """That there were messages stays, dead and forgotten; bytes, entity and later verdicts go; others stay."""
    archive = open_archive(folder_url)
    raw = raw_chunk([event(0), event(1, entity=WHO), b'{"entity_id":"%s"' % WHO.encode(), event(3), b"{"], step=1)
    put(archive, "aa.0", 0, read_chunk(raw))
    file = archive.stage("aa.0", 1, LATER)
    file.write(verdict_table(verdicts([1, 3], Verdict.DUPLICATE, 5)))
    archive.publish([file.finish()])
    late = archive.stage("aa.0", 2, DAY)
    late.write(message_table(owned(read_chunk(raw_chunk([event(9, entity=WHO)], first=9, step=1)))))
    token = late.finish()
    before = archive.segments("signals")
    assert archive.blank(named) == 3
    assert archive.blank(named) == 0
    assert [(s.rows, s.offset_first) for s in archive.segments("signals")] == [(s.rows, s.offset_first) for s in before]
    archive.publish([token])
    assert left_in(tmp_path, WHO) == []
    assert places(archive) == [("p0", n) for n in (0, 1, 2, 3, 4, 9)]
    gone = ("dead", "forgotten")
    wanted = {0: ("used", None), 1: gone, 2: gone, 3: ("duplicate", None), 9: gone}
    assert {n: outcome for n, outcome in outcomes(archive).items() if n != 4} == wanted


def held(offset: int, entity: str) -> HeldEvent:
    """A late event of the entity."""
    return HeldEvent("signals", "p-0", offset, "late", 9_000_000, entity, 1_000_000, offset, entity.encode())


def test_held_events_are_forgotten_and_numbers_go_on(file_url: str, tmp_path: Path) -> None:
    """Held, dropped and released ones go; later releases get numbers above those given; they may come anew."""
    with closing(open_holding(file_url)) as store:
        store.put([held(n, WHO if n % 2 else "other") for n in range(8)])
        store.release(["signals/p-0/0", "signals/p-0/1"])
        store.release(["signals/p-0/3"])
        store.drop(["signals/p-0/5"])
        assert store.forget(WHO) == 4
        assert store.forget(WHO) == 0
        assert [n for n, _ in store.released(0)] == [1]
        store.release(["signals/p-0/2"])
        assert [(n, e.offset) for n, e in store.released(3)] == [(4, 2)]
        assert left_in(tmp_path, WHO) == []
        assert store.put([held(3, WHO), held(7, WHO)]) == 2


def test_letters_are_forgotten_by_what_they_hold(file_url: str, tmp_path: Path) -> None:
    """Each letter is looked at with its original; those chosen leave no byte, also in the write-ahead log."""
    store = open_dead_letters(file_url)
    store.put([letter(n, original=WHO.encode() if n % 3 == 0 else b"{") for n in range(700)])
    assert store.forget(lambda one: WHO.encode() in one.original) == 234
    assert store.forget(lambda one: WHO.encode() in one.original) == 0
    assert store.count() == 466
    assert left_in(tmp_path, WHO) == []


def test_no_word_of_a_deleted_document_is_left(file_url: str, tmp_path: Path) -> None:
    """Neither in tables nor in the full text nor in the write-ahead log; what others share stays found."""
    store = open_metadata(file_url)
    store.add_space(SPACE)
    for n in range(30):
        store.apply([upsert(f"kept-{n}", f"shared words {n}")])
    store.apply([upsert(WHO, "shared quibblezorp", title=f"About {WHO}")])
    store.apply([Delete(f"file:///{WHO}")])
    store.scrub()
    assert left_in(tmp_path, WHO, "quibblezorp", "unmistak") == []
    assert (len(store.search_text(SPACE, "shared", limit=99)), store.search_text(SPACE, "quibblezorp", limit=9)) == (
        30,
        [],
    )
    assert store.text_is_whole()


@pytest.mark.parametrize("url", ["memory:", "usearch:///{}/vectors"])
def test_erased_vectors_leave_no_number(url: str, tmp_path: Path) -> None:
    """In the log, in the base, and those that an earlier compaction only marked; the others answer as before."""
    store = open_vectors(url.format(tmp_path), "test-16", DIM, shards=1, element="f32", compact_rows=4)
    numbers = dict.fromkeys(range(12), 0)
    with closing(store.write(0)) as writer:
        put_vectors(writer, numbers)
    with closing(store.write(0)) as writer:
        put_vectors(writer, {20: 0, 21: 0})
        writer.delete(keys([3, 4, 5, 6, 7]))
        writer.commit()
    with closing(store.write(0)) as writer:
        writer.erase(keys([1, 20]))
        writer.erase(keys([1, 20]))
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [key for key in (1, 3, 7, 20) if row(key).tobytes() in files] == []
    with closing(store.read()) as reader:
        assert holds(reader, dict.fromkeys((0, 2, 8, 9, 10, 11, 21), 0))
    assert store.check() == []
