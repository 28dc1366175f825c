"""What the SQLite file of the metadata survives, and that it answers like the store in memory."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, CorruptStoreError, FatalError, RetryableError
from stores.metadata import open_metadata, statements
from stores.metadata.memory import MemoryMetadata
from stores.metadata.port import MetadataStore
from stores.metadata.records import Change, Delete, Rename, Touch
from stores.metadata.schema import MIGRATIONS, Migration, migrate, schema_version
from stores.metadata.sqlite import SqliteMetadata
from stores.metadata.words import uri_pattern, uri_regex
from tests.contracts.test_metadata import SPACE, keys_of, upsert, uris

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store is to stand; its folder does not exist yet."""
    return tmp_path / "new" / "metadata.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteMetadata]:
    """An open store with one space."""
    opened = SqliteMetadata(path)
    opened.add_space(SPACE)
    yield opened
    opened.close()


def sound(store: SqliteMetadata) -> bool:
    """Whether the tables, their references and the words belong together."""
    connection = store._file.connection
    connection.execute("INSERT INTO chunk_words (chunk_words, rank) VALUES ('integrity-check', 1)")
    answers = [connection.execute(f"PRAGMA {check}").fetchall() for check in ("integrity_check", "foreign_key_check")]
    return answers == [[("ok",)], []]


NAMES = st.sampled_from(["a", "b", "c"])
UPSERTS = st.builds(
    lambda name, texts, space, state: upsert(name, *texts, space=space, state=state),
    NAMES,
    st.lists(st.sampled_from(["red", "green", "green fox", ""]), max_size=4),
    st.sampled_from([SPACE, "other"]),
    st.sampled_from(["ready", "ready", "dead"]),
)
CHANGES = st.one_of(
    UPSERTS,
    st.builds(lambda name: Delete(f"file:///{name}"), NAMES),
    st.builds(lambda name, print_: Touch(f"file:///{name}", "src", print_), NAMES, NAMES),
    st.builds(lambda name, new: Rename(f"file:///{name}", new), NAMES, UPSERTS),
)
STEPS = st.lists(st.one_of(st.lists(CHANGES, max_size=3), st.sampled_from(["activate", "add", "drop"])), max_size=12)


def step(store: MetadataStore, what: list[Change] | str) -> object:
    """Do one step of a history and return its answer."""
    match what:
        case "activate":
            return store.activate("other")
        case "add":
            store.add_space("other")
        case "drop":
            before = store.active_space()
            if before != "other":
                store.drop_space("other")
                store.add_space("other")
            return before
        case _:
            assert isinstance(what, list)
            store.apply(what)
    return None


def everything(store: MetadataStore) -> object:
    """All that a store answers, except scores."""
    documents = list(store.ledger())
    names = ["a", "b", "c"]
    return [
        documents,
        [store.document(upsert(name).document.doc_id) for name in names],
        store.spaces(),
        store.counts(),
        [
            (
                list(store.incomplete(space)),
                [list(store.chunks_of(upsert(name).document.doc_id, space)) for name in names],
                keys := list(store.keys(space)),
                store.chunks(space, keys),
                store.find_by_text_hash(space, [c.text_hash for c in upsert("x", "red", "green").chunks]),
                [sorted(hit.key for hit in store.search_text(space, word, limit=99)) for word in ("fox", "green red")],
                sorted(hit.key for hit in store.search_text(space, "green", limit=99, uri_glob="*[ab]")),
            )
            for space in (SPACE, "other")
        ],
    ]


@settings(max_examples=40)
@given(steps=STEPS)
def test_adapters_agree(steps: list[list[Change] | str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """After any history both adapters hold and find the same, the file is sound, and a repeat changes nothing."""
    memory, file = MemoryMetadata(), SqliteMetadata(tmp_path_factory.mktemp("agree") / "metadata.db")
    for store in (memory, file):
        store.add_space(SPACE)
        store.add_space("other")
    for what in steps:
        assert step(memory, what) == step(file, what)
        if isinstance(what, list) and len(what) == 1:
            file.apply(what)
    assert everything(memory) == everything(file)
    assert sound(file)
    file.close()


@settings(max_examples=300)
@given(glob=st.text(alphabet="*?[]^!-abc/é", max_size=8), uri=st.text(alphabet="]^!-abcé/", max_size=6))
def test_globs_mean_the_same_everywhere(glob: str, uri: str) -> None:
    """The regular expression of a glob takes what SQLite's GLOB takes."""
    pattern = uri_pattern(glob)
    connection = sqlite3.connect(":memory:")
    (taken,) = connection.execute("SELECT ? GLOB ?", (uri, pattern)).fetchone()
    connection.close()
    assert bool(uri_regex(pattern).fullmatch(uri)) == bool(taken)


def test_any_text_is_a_query(store: SqliteMetadata) -> None:
    """No text, in the query or in the filter, makes a search fail."""
    store.apply([upsert("a", "some text")])

    @given(st.text(max_size=30), st.text(max_size=10))
    def search(query: str, glob: str) -> None:
        store.search_text(SPACE, query, limit=3, uri_glob=glob)

    search()


def test_reopening_finds_everything(path: Path, store: SqliteMetadata) -> None:
    """What was applied outlives the object, closed or not, and a second object sees it at once."""
    store.apply([upsert("a", "alpha")])
    second = SqliteMetadata(path)
    assert uris(second, "alpha") == ["a"]
    second.apply([upsert("b", "alpha")])
    assert sorted(uris(store, "alpha")) == ["a", "b"]
    second.close()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from stores.metadata.sqlite import SqliteMetadata
from tests.contracts.test_metadata import SPACE, upsert
store = SqliteMetadata(Path({path!r}))
store.add_space(SPACE)
first = int(sys.argv[1])
for n in range(first, first + 200):
    store.apply([upsert(f"{{n}}", f"word{{n}}", "common"), upsert("shared", f"version{{n}}")])
    print(n, flush=True)
"""


def writer(path: Path, first: int) -> subprocess.Popen[str]:
    """A process that applies 200 changes of two documents and prints each when it is durable."""
    code = WRITER.format(root=str(ROOT), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code, str(first)], stdout=subprocess.PIPE, text=True)


def test_several_processes_write_at_once(path: Path) -> None:
    """Processes that make the file at the same moment and change the same document all succeed."""
    writers = [writer(path, first) for first in (0, 100, 200)]
    for process in writers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    store = SqliteMetadata(path)
    assert store.counts()["ready"] == 401
    assert len(store.keys(SPACE)) == 801
    assert sound(store)
    store.close()


def test_a_killed_writer_leaves_whole_changes(path: Path) -> None:
    """After kill -9 in the middle of writing, whatever `apply` had returned for is there and the file is sound."""
    process = writer(path, 0)
    assert process.stdout is not None
    reported = [int(process.stdout.readline()) for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    store = SqliteMetadata(path)
    assert all(uris(store, f"word{n}") == [str(n)] for n in reported)
    assert sound(store)
    assert len(store.chunks_of(upsert("shared").document.doc_id, SPACE)) == 1
    store.apply([upsert("shared", "after")])
    store.close()


def test_a_reader_sees_the_old_or_the_new_state(path: Path, store: SqliteMetadata) -> None:
    """While a writer replaces all chunks again and again, a reader never sees a mix of two versions."""
    versions = [upsert("a", *(f"{kind}{n}" for n in range(20))) for kind in ("old", "new")]
    store.apply([versions[0]])
    done = Event()

    def write() -> None:
        other = SqliteMetadata(path)
        for number in range(1, 60):
            other.apply([versions[number % 2]])
        other.close()
        done.set()

    thread = Thread(target=write)
    thread.start()
    expected = [keys_of(version) for version in versions]
    seen = 0
    while not done.is_set() or seen == 0:
        assert [chunk.key for chunk in store.chunks_of(versions[0].document.doc_id, SPACE)] in expected
        seen += 1
    thread.join()


def test_a_locked_file_may_be_tried_again(path: Path, store: SqliteMetadata) -> None:
    """A writer that holds the file too long is a RetryableError; readers go on, and the next call works."""
    quick = SqliteMetadata(path, busy_s=0.05)
    store._file.connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryableError, match="locked"):
        quick.apply([upsert("a", "alpha")])
    assert list(quick.ledger()) == []
    store._file.connection.execute("ROLLBACK")
    quick.apply([upsert("a", "alpha")])
    quick.close()


def test_a_full_disk_keeps_what_was_there(store: SqliteMetadata) -> None:
    """A change that does not fit is a FatalError, leaves nothing half written, and works once there is room."""
    store.apply([upsert("a", "alpha")])
    (pages,) = store._file.connection.execute("PRAGMA page_count").fetchone()
    store._file.connection.execute(f"PRAGMA max_page_count = {pages + 4}").fetchall()
    large = upsert("a", "beta " * 100_000)
    with pytest.raises(FatalError, match="disk is full"):
        store.apply([large])
    assert (uris(store, "alpha"), uris(store, "beta")) == (["a"], [])
    store._file.connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    store.apply([large])
    assert sound(store)


def test_places_that_hold_no_metadata(path: Path) -> None:
    """No database, a damaged one, another program's or a newer one: each is named with what to do."""
    path.parent.mkdir()
    path.write_bytes(b"these are not the documents you are looking for" * 100)
    with pytest.raises(CorruptStoreError, match=str(path)):
        SqliteMetadata(path)
    other = path.with_name("other.db")
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE letters (letter)")
    connection.close()
    with pytest.raises(ConfigError, match="another program's"):
        SqliteMetadata(other)
    newer = path.with_name("newer.db")
    SqliteMetadata(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="upgrade"):
        SqliteMetadata(newer)
    with pytest.raises(ConfigError, match=str(path.parent)):
        SqliteMetadata(path.parent)


def test_migrations_are_whole_steps(path: Path, store: SqliteMetadata) -> None:
    """A later step keeps the data; one that fails leaves the version before it; done twice it is done once."""
    store.apply([upsert("a", "alpha")])
    connection = store._file.connection
    more: tuple[Migration, ...] = (*MIGRATIONS, ("ALTER TABLE documents ADD COLUMN note TEXT NOT NULL DEFAULT 'x'",))
    failing: tuple[Migration, ...] = (*more, ("CREATE TABLE half (half)", "CREATE TABLE nonsense"))
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, str(path), failing)
    for _ in range(2):
        migrate(connection, str(path), more)
        assert schema_version(connection, str(path)) == len(more)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone() == (0,)
    assert connection.execute("SELECT uri, note FROM documents").fetchall() == [("file:///a", "x")]
    with pytest.raises(ConfigError, match="upgrade"):
        migrate(connection, str(path))


def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documents stay, and positions can be noted in it."""
    with monkeypatch.context() as patch:
        patch.setattr("stores.metadata.sqlite.migrate", lambda found, where: migrate(found, where, MIGRATIONS[:1]))
        first = SqliteMetadata(path)
        first.add_space(SPACE)
        first.apply([upsert("a", "alpha")])
        first.close()
    second = SqliteMetadata(path)
    second.note_positions("docs", {"0": {"offset": 1}})
    assert (second.positions("docs"), uris(second, "alpha")) == ({"0": {"offset": 1}}, ["a"])
    assert list(second.check()) == []
    second.close()


HOT = [
    "KNOWN",
    "KNOWN_OF_SOURCE",
    "DOCUMENT",
    "TOUCH",
    "DELETE_DOCUMENT",
    "OLD_CHUNKS",
    "LAST_CHUNK",
    "CHUNKS_OF",
    "KEY_OF_TEXT",
    "CHUNK",
    "KEYS",
    "DROP_CHUNKS",
]


@pytest.mark.parametrize("name", HOT)
def test_hot_statements_use_an_index(store: SqliteMetadata, name: str) -> None:
    """What runs once a document or a page reads no table from end to end, and sorts nothing that it pages through."""
    statement = getattr(statements, name)
    bound = dict.fromkeys(("after", "limit", "source"), "") if ":" in statement else [0] * statement.count("?")
    plan = store._file.connection.execute(f"EXPLAIN QUERY PLAN {statement}", bound)
    steps = [detail for *_, detail in plan]
    assert [d for d in steps if d.startswith("SCAN") and d != "SCAN CONSTANT ROW"] == []
    assert name == "CHUNKS_OF" or not any("TEMP B-TREE" in detail for detail in steps)


def test_search_goes_from_words_to_chunks(store: SqliteMetadata) -> None:
    """A search starts at the words, looks each chunk up by number, and reads the uris once for a filter."""
    for statement in (statements.SEARCH, statements.SEARCH_IN):
        bound = {"words": "x", "space": 1, "limit": 1, "glob": "*"}
        steps = [row[-1] for row in store._file.connection.execute(f"EXPLAIN QUERY PLAN {statement}", bound)]
        assert steps[0].startswith("SCAN chunk_words VIRTUAL TABLE")
        assert steps[1] == "SEARCH chunks USING INTEGER PRIMARY KEY (rowid=?)"


def test_tracking_is_smaller_than_the_vectors(store: SqliteMetadata) -> None:
    """What is kept of a chunk beside its text takes less than the 384 bytes of its smallest vector."""
    texts = [f"{n} " * 20 for n in range(5_000)]
    store.apply([upsert(str(at), *texts[at : at + 10], memo_key="m" * 32) for at in range(0, 5_000, 10)])
    connection = store._file.connection
    connection.execute("DELETE FROM chunk_texts")
    connection.execute("VACUUM")
    (pages,), (page_bytes,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    assert pages * page_bytes / 5_000 < 384


def test_urls_choose_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_metadata` opens what the scheme says, relative or absolute, and refuses the rest in one sentence."""
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_metadata("memory:"), MemoryMetadata)
    for url, place in ((f"sqlite:///{tmp_path}/a%20b.db", "a b.db"), ("sqlite:///data/meta.db", "data/meta.db")):
        open_metadata(url).close()
        assert (tmp_path / place).is_file()
    for url in ("sqlite:", "sqlite:///", "sqlite:///:memory:", "mysql://x", ""):
        with pytest.raises(ConfigError, match="METADATA_DB_URL"):
            open_metadata(url)
