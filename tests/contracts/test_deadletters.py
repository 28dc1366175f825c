"""What every store of dead letters promises, and what the SQLite file survives."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, CorruptStoreError, FatalError, RetryableError
from operators.records import DeadLetter
from stores.deadletters import open_dead_letters
from stores.deadletters.memory import MemoryDeadLetters
from stores.deadletters.port import DeadLetters, LetterFilter, head_of, letter_id
from stores.deadletters.sqlite import SqliteDeadLetters

ROOT = Path(__file__).parents[2]


def letter(offset: int, **changes: object) -> DeadLetter:
    """A letter whose place and time follow from its offset."""
    plain = DeadLetter(
        letter_id("signals", "p0", offset, "decode"),
        1_000_000 + offset,
        "decode",
        "not_json",
        "the bytes are no JSON",
        "signals",
        "p0",
        offset,
        b'{"entity_id": ',
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test names only fields that exist


@pytest.fixture(params=["memory", "sqlite"])
def letters(request: pytest.FixtureRequest, tmp_path: Path) -> DeadLetters:
    """One open, empty store."""
    return open_dead_letters(f"{request.param}:///{tmp_path}/dead.db")


def offsets(store: DeadLetters, which: LetterFilter | None = None) -> list[int]:
    """Offsets of all letters, in the order of a listing that reads small pages."""
    found: list[int] = []
    after = None
    while page := store.list(which or LetterFilter(), limit=3, after=after):
        found += [head.offset for head in page]
        after = page[-1].place
    return found


def test_a_letter_comes_back_as_it_went(letters: DeadLetters) -> None:
    """Every byte and every field, whatever script, quote, NUL or emoji it holds, is the same afterwards."""
    sent = [
        letter(1, original=bytes(range(256)) * 3, detail='it\'s "quoted"; DROP TABLE dead_letters;--'),
        letter(2, original=b"", trace_id="", source="", partition="../../x/y\0z"),
        letter(3, detail="温度計 😀 \n\t", trace_id="t" * 10_000, reason="' OR 1=1"),
        letter((1 << 63) - 1, time_us=-(1 << 63)),
    ]
    assert letters.put(sent) == 4
    for one in sent:
        assert letters.get(one.letter_id) == one
    assert [head for head in letters.list() if head.offset < 9] == [head_of(one) for one in sent[:3]]
    assert letters.get("unknown") is None


def test_text_that_is_no_unicode_does_not_lose_the_letter(letters: DeadLetters) -> None:
    """A lone surrogate from a broken escape becomes a replacement character; the original stays as it is."""
    letters.put([letter(1, detail="bad \ud83d!", trace_id="\udc00", original=b'"\\ud83d"')])
    kept = letters.get(letter(1).letter_id)
    assert kept == letter(1, detail="bad \ufffd!", trace_id="\ufffd", original=b'"\\ud83d"')


def test_the_first_letter_stays(letters: DeadLetters) -> None:
    """A replay, in the same call or later, adds nothing and changes nothing; the count tells."""
    assert letters.put([letter(1), letter(2), letter(1, detail="again", time_us=0)]) == 2
    assert letters.put([letter(2, detail="again", time_us=0), letter(3)]) == 1
    assert letters.get(letter(1).letter_id) == letter(1)
    assert offsets(letters) == [1, 2, 3]


def test_nothing_is_nothing(letters: DeadLetters) -> None:
    """An empty store and empty calls."""
    assert (letters.put([]), letters.drop([]), letters.drop(["unknown"]), letters.count()) == (0, 0, 0, 0)
    assert list(letters.list()) == []


def test_order_is_time_then_id_and_pages_join(letters: DeadLetters) -> None:
    """Pages of any size, even behind a letter that was dropped, give every letter once, oldest first."""
    same_time = sorted((letter(n, time_us=5) for n in range(50, 57)), key=lambda one: one.letter_id)
    letters.put([letter(9), *same_time[::-1], letter(4)])
    expected = [one.offset for one in same_time] + [4, 9]
    assert offsets(letters) == expected
    first = letters.list(limit=2)
    letters.drop([first[1].letter_id])
    rest = letters.list(limit=100, after=first[1].place)
    assert [head.offset for head in rest] == expected[2:]
    with pytest.raises(ValueError, match="limit"):
        letters.list(limit=0)


def test_filters(letters: DeadLetters) -> None:
    """A listing and a count take the letters that every filter takes."""
    letters.put(
        [letter(1), letter(2, stage="late"), letter(3, reason="no_entity", source="docs"), letter(4, partition="p1")]
    )
    cases = [
        (LetterFilter(), [1, 2, 3, 4]),
        (LetterFilter(stage="late"), [2]),
        (LetterFilter(reason="no_entity"), [3]),
        (LetterFilter(source="signals", stage="decode"), [1, 4]),
        (LetterFilter(partition="p1"), [4]),
        (LetterFilter(stage="decode' OR '1'='1"), []),
    ]
    for which, expected in cases:
        assert (offsets(letters, which), letters.count(which)) == (expected, len(expected))


def test_dropped_letters_are_gone_and_may_come_again(letters: DeadLetters) -> None:
    """Dropping counts what was there, once each; a later replay of the same input is a new letter."""
    letters.put([letter(1), letter(2), letter(3)])
    gone = [letter(1).letter_id, letter(3).letter_id, letter(1).letter_id, "unknown"]
    assert (letters.drop(gone), letters.drop(gone)) == (2, 0)
    assert (offsets(letters), letters.count()) == ([2], 1)
    assert letters.put([letter(1, detail="again")]) == 1


def test_a_very_large_batch_and_a_very_large_letter(letters: DeadLetters) -> None:
    """Ten thousand letters in one call, and one of 40 MB, of which a listing reads nothing but the size."""
    assert letters.put([letter(n) for n in range(10_000)]) == 10_000
    huge = letter(10_000, original=os.urandom(1 << 20) * 40)
    letters.put([huge])
    assert letters.count() == 10_001
    assert letters.list(after=(1_000_000 + 9_999, "~"))[0].size_bytes == 40 << 20
    assert letters.get(huge.letter_id) == huge


def test_a_closed_store_says_so(letters: DeadLetters) -> None:
    """After close, which may be repeated, every call is a ValueError."""
    letters.close()
    letters.close()
    calls: list[Callable[[], object]] = [
        lambda: letters.put([letter(1)]),
        lambda: letters.put([]),
        letters.list,
        lambda: letters.get("x"),
        lambda: letters.drop(["x"]),
        letters.count,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


@settings(max_examples=25)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(["put", "drop"]), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=5)
        )
    )
)
def test_adapters_agree(
    calls: list[tuple[str, list[tuple[int, int]]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is put and dropped in whatever order, both adapters answer and hold the same."""
    stores: list[DeadLetters] = [MemoryDeadLetters(), SqliteDeadLetters(tmp_path_factory.mktemp("agree") / "dead.db")]
    for verb, chosen in calls:
        batch = [letter(offset, time_us=time_us) for offset, time_us in chosen]
        if verb == "put":
            answers = [store.put(batch) for store in stores]
        else:
            answers = [store.drop([one.letter_id for one in batch]) for store in stores]
        assert answers[0] == answers[1]
    assert list(stores[0].list()) == list(stores[1].list())
    stores[1].close()


def test_ids_follow_from_the_place_alone() -> None:
    """The id is a fixed function: equal places give equal ids, and parts cannot run into one another."""
    assert letter_id("signals", "p0", 7, "decode") == "1e9bce4b908cfaad13acb24ea1512a5e"
    places = [("a", "b", 1, "c"), ("ab", "", 1, "c"), ("a", "b1", 1, "c"), ("a", "b", 11, "c"), ("a", "b", 1, "d")]
    assert len({letter_id(*place) for place in places}) == len(places)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a SQLite store is to stand; its folder does not exist yet."""
    return tmp_path / "new" / "dead.db"


def test_reopening_finds_the_letters(path: Path) -> None:
    """Letters outlive the object, closed or not."""
    first = SqliteDeadLetters(path)
    first.put([letter(1)])
    second = SqliteDeadLetters(path)
    assert second.get(letter(1).letter_id) == letter(1)
    second.put([letter(2)])
    assert offsets(first) == [1, 2]
    first.close()
    second.close()
    assert offsets(SqliteDeadLetters(path)) == [1, 2]


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from stores.deadletters.sqlite import SqliteDeadLetters
from tests.contracts.test_deadletters import letter
store = SqliteDeadLetters(Path({path!r}))
first = int(sys.argv[1])
for offset in range(first, first + 300):
    store.put([letter(offset), letter(offset // 2)])
    print(offset, flush=True)
"""


def writer(path: Path, first: int) -> subprocess.Popen[str]:
    """A process that puts 300 letters, some of which others put too, and prints each when it is durable."""
    code = WRITER.format(root=str(ROOT), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code, str(first)], stdout=subprocess.PIPE, text=True)


def test_several_processes_write_at_once(path: Path) -> None:
    """Processes that open a new store at the same moment and put overlapping letters all succeed."""
    writers = [writer(path, first) for first in (0, 150, 300, 450)]
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    store = SqliteDeadLetters(path)
    assert offsets(store) == list(range(750))


def test_a_killed_writer_loses_no_letter_that_it_reported(path: Path) -> None:
    """After kill -9 in the middle of writing, whatever `put` had returned for is there and the file is sound."""
    process = writer(path, 0)
    assert process.stdout is not None
    reported = [int(process.stdout.readline()) for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    store = SqliteDeadLetters(path)
    assert set(reported) <= set(offsets(store))
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert store.put([letter(10_000)]) == 1


def test_a_locked_file_may_be_tried_again(path: Path) -> None:
    """A writer that holds the file too long is a RetryableError, and the next call works."""
    store = SqliteDeadLetters(path, busy_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryableError, match="locked"):
        store.put([letter(1)])
    other.execute("ROLLBACK")
    other.close()
    assert store.put([letter(1)]) == 1


def test_a_full_disk_keeps_what_was_there(path: Path) -> None:
    """A put that does not fit is a FatalError, leaves nothing half kept, and works once there is room."""
    store = SqliteDeadLetters(path)
    store.put([letter(1)])
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 4}").fetchall()
    large = [letter(2), letter(3, original=b"x" * 1_000_000)]
    with pytest.raises(FatalError, match="disk is full"):
        store.put(large)
    assert offsets(store) == [1]
    store._connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    assert store.put(large) == 2


def test_dropped_letters_give_their_space_back(path: Path) -> None:
    """The file shrinks when large letters are dropped, so dropping is a way out of a full disk."""
    store = SqliteDeadLetters(path)
    store.put([letter(1), letter(2, original=b"x" * 5_000_000)])
    store.drop([letter(2).letter_id])
    store.close()
    assert path.stat().st_size < 200_000


def test_a_damaged_file_is_named(path: Path) -> None:
    """A file that is no database, or a damaged one, is a CorruptStoreError that names it."""
    path.parent.mkdir()
    path.write_bytes(b"these are not the letters you are looking for" * 100)
    with pytest.raises(CorruptStoreError, match=str(path)):
        SqliteDeadLetters(path)
    path.unlink()
    store = SqliteDeadLetters(path)
    store.put([letter(n, original=b"y" * 3_000) for n in range(200)])
    store.close()
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = b"\xa5" * (len(damaged) - 4096)
    path.write_bytes(damaged)
    with pytest.raises(CorruptStoreError, match=str(path)):
        SqliteDeadLetters(path).count()


def test_a_place_that_cannot_be_opened(path: Path) -> None:
    """A folder in the file's place, or a file in its folder's place, is a ConfigError; so is a newer format."""
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match=str(path)):
        SqliteDeadLetters(path)
    (path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        SqliteDeadLetters(path / "file" / "dead.db")
    newer = path / "newer.db"
    SqliteDeadLetters(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ConfigError, match="upgrade"):
        SqliteDeadLetters(newer)


def test_urls_choose_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_dead_letters` opens what the scheme says, relative or absolute, and refuses the rest in one sentence."""
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_dead_letters("memory:"), MemoryDeadLetters)
    for url, place in ((f"sqlite:///{tmp_path}/a%20b.db", "a b.db"), ("sqlite:///data/dead.db", "data/dead.db")):
        open_dead_letters(url).close()
        assert (tmp_path / place).is_file()
    for url in ("sqlite:", "sqlite:///", "sqlite:///:memory:", "postgres://x", ""):
        with pytest.raises(ConfigError, match="dead letters"):
            open_dead_letters(url)
