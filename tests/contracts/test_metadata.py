"""What every metadata store promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from operators.documents import Chunk, chunk_keys, doc_id
from stores.metadata import open_metadata
from stores.metadata.port import MetadataStore
from stores.metadata.records import (
    Change,
    DatasetVersion,
    Delete,
    Document,
    Rename,
    Run,
    Space,
    StoredChunk,
    Touch,
    Upsert,
)
from stores.metadata.words import QUERY_WORDS_MAX

SPACE = "stub-8"


def chunks(*texts: str, **changes: object) -> tuple[Chunk, ...]:
    """Chunks with these texts, one behind the other."""
    found, offset = [], 0
    for ordinal, text in enumerate(texts):
        found.append(replace(Chunk(ordinal, offset, text), **changes))  # type: ignore[arg-type]  # fields that exist
        offset += len(text)
    return tuple(found)


def upsert(uri: str, *texts: str, space: str = SPACE, **changes: object) -> Upsert:
    """A document at that uri with chunks of these texts."""
    plain = Document(f"file:///{uri}", "file:///", "1-2-3", "c" * 32, f"memo {texts}", "s" * 32, "text/plain", 9, "r1")
    return Upsert(replace(plain, **changes), space, chunks(*texts))  # type: ignore[arg-type]  # fields that exist


def keys_of(change: Upsert) -> list[int]:
    """The keys that its chunks must have, in order."""
    return list(chunk_keys(change.document.doc_id, [chunk.text_hash for chunk in change.chunks]))


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    """One open store with one space and nothing in it."""
    opened = open_metadata(f"{request.param}:///{tmp_path}/metadata.db")
    opened.add_space(SPACE)
    yield opened
    opened.close()


def uris(store: MetadataStore, query: str, space: str = SPACE, uri_glob: str | None = None) -> list[str]:
    """Short uris of the chunks that a query finds, best first."""
    hits = store.search_text(space, query, limit=50, uri_glob=uri_glob)
    records = store.chunks(space, [hit.key for hit in hits])
    return [records[hit.key].uri.removeprefix("file:///") for hit in hits]


def test_a_document_comes_back_as_it_went(store: MetadataStore) -> None:
    """Every field, whatever script, quote, NUL or emoji it holds, and every chunk with its place and its key."""
    title = 'it\'s "quoted"; DROP TABLE documents;-- 温度計 😀 \0'
    metadata = {"tags": ["a", None, 1.5], "nested": {"": True}, "text": title}
    sent = upsert("a%20b.md", title=title, metadata=metadata, size_bytes=1 << 40)
    headed = Chunk(0, 0, title, 3, ("One", 'Two "2" 😀'))
    sent = replace(sent, chunks=(headed, Chunk(1, 500, "naïve\r\ncafé", None)))
    store.apply([sent])
    assert store.document(sent.document.doc_id) == sent.document
    assert list(store.ledger()) == [sent.document.known]
    first, second = keys_of(sent)
    assert store.chunks_of(sent.document.doc_id, SPACE) == [
        StoredChunk(first, 0, 0, len(title), 3, headed.text_hash),
        StoredChunk(second, 1, 500, 11, None, sent.chunks[1].text_hash),
    ]
    record = store.chunks(SPACE, [second, first, 17])[first]
    assert (record.text, record.heading, record.page, record.title) == (title, headed.heading, 3, title)
    assert (record.doc_id, record.uri, record.length) == (sent.document.doc_id, "file:///a%20b.md", len(title))


def test_nothing_is_nothing(store: MetadataStore) -> None:
    """An empty store, empty calls, and documents, keys and hashes that nobody knows."""
    store.apply([])
    store.apply([Delete("file:///x"), Touch("file:///x", "s", "f")])
    assert [list(store.ledger()), list(store.incomplete(SPACE)), list(store.keys(SPACE))] == [[], [], []]
    assert store.document(doc_id("file:///x")) is None
    assert list(store.chunks_of(doc_id("file:///x"), SPACE)) == []
    assert store.find_by_text_hash(SPACE, []) == store.find_by_text_hash(SPACE, ["0" * 32]) == {}
    assert store.chunks(SPACE, []) == store.chunks(SPACE, [0, (1 << 64) - 1]) == {}
    assert list(store.search_text(SPACE, "word", limit=1)) == []
    assert store.counts() == {"ready": 0, "dead": 0}
    empty = upsert("empty")
    store.apply([empty])
    assert (list(store.incomplete(SPACE)), store.spaces()) == ([], [Space(SPACE, "active", 1, 0)])


def test_text_that_is_no_unicode_keeps_its_length(store: MetadataStore) -> None:
    """Lone surrogates become replacement characters, one for one, so that offsets still fit."""
    sent = upsert("a", "x\ud83d\ude00y \udc00 word", title="\ud800", metadata={"k\udfff": "\udfff"})
    store.apply([sent])
    (key,) = keys_of(sent)
    assert store.chunks(SPACE, [key])[key].text == "x\ufffd\ufffdy \ufffd word"
    kept = store.document(sent.document.doc_id)
    assert kept is not None
    assert (kept.title, kept.metadata) == ("\ufffd", {"k\ufffd": "\ufffd"})
    assert uris(store, "word \ud800") == ["a"]


def test_an_unchanged_chunk_keeps_its_key_wherever_it_moves(store: MetadataStore) -> None:
    """A new version replaces the chunk list: the tail of a longer one goes, moved and headed chunks keep their key."""
    old = upsert("a", "alpha", "beta", "gamma", "delta")
    store.apply([old])
    moved = Chunk(1, 70, "beta", 4, ("New",))
    new = replace(upsert("a", fingerprint="4-5-6"), chunks=(Chunk(0, 3, "omega"), moved))
    for _ in range(2):
        store.apply([new])
        assert list(store.keys(SPACE)) == sorted(keys_of(new))
        assert keys_of(new)[1] == keys_of(old)[1]
        found = store.chunks_of(old.document.doc_id, SPACE)
        assert [(c.ordinal, c.offset, c.page) for c in found] == [(0, 3, None), (1, 70, 4)]
        assert store.chunks(SPACE, keys_of(new))[keys_of(new)[1]].heading == ("New",)
        assert [uris(store, word) for word in ("gamma", "beta", "omega", "new")] == [[], ["a"], ["a"], ["a"]]


def test_equal_texts_are_told_apart(store: MetadataStore) -> None:
    """Two documents with equal text are two; of one removed the other stays, and so do repeats within a document."""
    first, second = upsert("a", "same", "same", "other"), upsert("b", "same")
    store.apply([first, second])
    assert len(store.keys(SPACE)) == 4
    same = first.chunks[0].text_hash
    assert store.find_by_text_hash(SPACE, [same, "0" * 32]) == {same: min(keys_of(first)[:2] + keys_of(second))}
    store.apply([Delete("file:///a")])
    assert store.find_by_text_hash(SPACE, [same, first.chunks[2].text_hash]) == {same: keys_of(second)[0]}
    assert (uris(store, "same"), uris(store, "other")) == (["b"], [])


def test_one_of_three_chunks_removed(store: MetadataStore) -> None:
    """It goes from look-ups by key, by text and by word, and its neighbours stay."""
    store.apply([upsert("a", "one", "two", "three")])
    store.apply([upsert("a", "one", "three")])
    assert [uris(store, word) for word in ("one", "two", "three")] == [["a"], [], ["a"]]
    assert store.find_by_text_hash(SPACE, [chunks("two")[0].text_hash]) == {}


def test_touch_and_delete(store: MetadataStore) -> None:
    """A touch changes fingerprint and source alone; a deleted document is nowhere."""
    sent = upsert("a", "alpha")
    store.apply([sent, upsert("b", "beta")])
    store.apply([Touch("file:///a", "elsewhere", "7-8-9")])
    assert store.document(sent.document.doc_id) == replace(sent.document, source="elsewhere", fingerprint="7-8-9")
    assert [known.uri for known in store.ledger("elsewhere")] == ["file:///a"]
    assert list(store.ledger("nowhere")) == []
    for _ in range(2):
        store.apply([Delete("file:///a")])
        assert [known.uri for known in store.ledger()] == ["file:///b"]
        assert (store.document(sent.document.doc_id), list(store.chunks_of(sent.document.doc_id, SPACE))) == (None, [])
        assert uris(store, "alpha beta") == ["b"]


def test_a_rename_is_one_step(store: MetadataStore) -> None:
    """The old uri goes with all its chunks and the new one has its own; repeated, and onto itself, it stays so."""
    old, new = upsert("old", "alpha", "beta"), upsert("new", "alpha", "beta")
    store.apply([old])
    for change in (Rename("file:///old", new), Rename("file:///old", new), Rename("file:///new", new)):
        store.apply([change])
        assert [known.uri for known in store.ledger()] == ["file:///new"]
        assert list(store.keys(SPACE)) == sorted(keys_of(new))
        assert uris(store, "beta") == ["new"]


def test_changes_are_made_all_or_none(store: MetadataStore) -> None:
    """A call that cannot be carried out to its end leaves everything as it was."""
    store.apply([upsert("a", "alpha")])
    wrong: list[Change] = [
        upsert("b", "beta", space="never added"),
        upsert("b", metadata={"when": object()}),
        upsert("b", metadata={"ratio": float("nan")}),
        Rename("file:///a", upsert("b", space="never added")),
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"never added|no JSON"):
            store.apply([Delete("file:///a"), upsert("c", "gamma"), change])
        assert [known.uri for known in store.ledger()] == ["file:///a"]
        assert uris(store, "alpha gamma") == ["a"]


def test_the_ledger_is_sorted_and_whole(store: MetadataStore) -> None:
    """More documents than a page holds come once each, by uri, also those of one source alone and dead ones."""
    names = [f"{n:05d}" for n in range(12_000)]
    store.apply(
        [upsert(name, source="odd" if int(name) % 2 else "even", state="dead") for name in reversed(names)]
        + [upsert("00007", source="odd")]
    )
    assert [known.uri.removeprefix("file:///") for known in store.ledger()] == names
    assert [int(known.uri[-5:]) % 2 for known in store.ledger("odd")] == [1] * 6_000
    assert store.counts() == {"ready": 1, "dead": 11_999}


def test_pages_of_keys_join(store: MetadataStore) -> None:
    """Keys come once each, rising as the unsigned numbers they are, whatever the size of the page."""
    sent = upsert("a", *map(str, range(50)))
    store.apply([sent])
    found: list[int] = []
    while page := store.keys(SPACE, after=found[-1] if found else None, limit=7):
        found += page
    assert found == sorted(keys_of(sent))
    assert found[-1] > 1 << 63
    assert list(store.keys(SPACE, after=(1 << 64) - 1)) == []


HOSTILE = [
    '"',
    '" OR "',
    "a AND",
    "NOT",
    "NEAR(a b)",
    "heading : x",
    "{heading text}: x",
    "- ^ * + ( ) { } [ ] :",
    "text:*",
    "x*",
    "^x",
    "'; DROP TABLE chunks; --",
    "\0",
    "a\0b",
    "",
    " \t\n",
    "🙂",
    "\ud800",
    "%_",
    "x" * 100_000,
    " ".join(map(str, range(5 * QUERY_WORDS_MAX))),
    "(" * 10_000,
]


@pytest.mark.parametrize("query", HOSTILE)
def test_no_query_is_an_operator(store: MetadataStore, query: str) -> None:
    """Whatever is typed is words to look for; nothing of it can fail or match what has none of the words."""
    store.apply([upsert("a", "nothing in common")])
    assert uris(store, query) == []
    assert uris(store, f"{query} common"[-200:]) == ["a"]


def test_search_ranks_and_filters(store: MetadataStore) -> None:
    """More and rarer words first; case and accents do not matter; the filter fits the whole uri."""
    store.apply(
        [
            upsert("docs/one.md", "the lake and the river"),
            upsert("docs/two.md", "the RIVER runs; a river, the river", "Über den Fluß"),
            upsert("notes/[3].txt", "the mountain"),
        ]
    )
    assert uris(store, "river") == ["docs/two.md", "docs/one.md"]
    assert uris(store, "lake river")[0] == "docs/one.md"
    assert uris(store, "UBER fluß") == ["docs/two.md"]
    assert len(store.search_text(SPACE, "the", limit=2)) == 2
    cases = {
        "*": 3,
        "file:///docs/*": 2,
        "*.md": 2,
        "docs/*": 0,
        "*/t?o.md": 1,
        "*docs/[a-o]*.md": 1,
        "*docs/[!o-p]??.md": 1,
        "*/[[]3].txt": 1,
        "*/DOCS/*": 0,
        "*' OR '1'='1": 0,
        "[": 0,
    }
    for glob, count in cases.items():
        assert len(uris(store, "the", uri_glob=glob)) == count, glob
    scores = [hit.score for hit in store.search_text(SPACE, "the river", limit=9)]
    assert scores == sorted(scores, reverse=True)


def test_a_new_space_is_built_beside_the_old(store: MetadataStore) -> None:
    """Search keeps to the old space until every ready document is in the new one; then the old is retired."""
    documents = [upsert(name, "alpha", name) for name in "abc"]
    store.apply([*documents, upsert("dead", state="dead")])
    store.add_space("new")
    assert (store.active_space(), store.activate("new")) == (SPACE, False)
    for number, one in enumerate(documents):
        assert list(store.incomplete("new")) == [f"file:///{name}" for name in "abc"[number:]]
        store.apply([replace(one, space="new", document=replace(one.document, memo_key="new"))])
    assert store.spaces() == [Space("new", "building", 3, 6), Space(SPACE, "active", 4, 6)]
    assert sorted(uris(store, "alpha")) == ["a", "b", "c"]
    assert (store.activate("new"), store.activate("new"), store.active_space()) == (True, True, "new")
    assert [space.state for space in store.spaces()] == ["active", "retired"]
    store.apply([Delete("file:///a")])
    assert (set(uris(store, "alpha", "new")), set(uris(store, "alpha"))) == ({"b", "c"}, {"b", "c"})
    with pytest.raises(ValueError, match="active"):
        store.drop_space("new")
    for _ in range(2):
        store.drop_space(SPACE)
        assert store.spaces() == [Space("new", "active", 2, 4)]
    assert set(uris(store, "alpha", "new")) == {"b", "c"}


def test_an_old_space_may_be_taken_up_again(store: MetadataStore) -> None:
    """What changed meanwhile is missing there until it is written there."""
    kept, changed = upsert("kept", "alpha"), upsert("changed", "beta")
    store.apply([kept, changed])
    store.add_space("new")
    store.apply([replace(one, space="new") for one in (kept, upsert("changed", "gamma"))])
    assert store.activate("new")
    store.add_space(SPACE)
    assert ([space.state for space in store.spaces()], store.active_space()) == (["active", "building"], "new")
    assert (list(store.incomplete(SPACE)), store.activate(SPACE)) == (["file:///changed"], False)
    store.apply([upsert("changed", "gamma")])
    assert store.activate(SPACE)


def test_runs(store: MetadataStore) -> None:
    """A run is there from its start; its end is told once it is over; the latest comes first."""
    store.start_run("r1", started_us=1, shape="s")
    store.start_run("r1", started_us=9, shape="again")
    store.start_run("r2", started_us=2, shape="s")
    store.end_run("r1", ended_us=5, counts={"added": 3})
    store.end_run("unknown", ended_us=5, counts={})
    assert list(store.runs()) == [Run("r2", 2, "s"), Run("r1", 1, "s", 5, {"added": 3})]
    assert list(store.runs(1)) == [Run("r2", 2, "s")]


def test_dataset_versions(store: MetadataStore) -> None:
    """Versions of a name count from 1; the same data written to the same place again is no new version."""
    first = DatasetVersion("chunks", 0, "parquet", "out", 10, "d1", "r1")
    assert store.add_version(first) == replace(first, version=1)
    assert store.add_version(replace(first, run="r2")) == replace(first, version=1)
    assert store.add_version(replace(first, digest="d2")).version == 2
    assert store.add_version(first).version == 3
    assert store.add_version(replace(first, name="other")).version == 1
    assert [(v.name, v.version) for v in store.versions()] == [
        ("chunks", 1),
        ("chunks", 2),
        ("chunks", 3),
        ("other", 1),
    ]
    assert [v.digest for v in store.versions("chunks")] == ["d1", "d2", "d1"]


def test_limits_and_spaces_are_checked(store: MetadataStore) -> None:
    """A limit below one, and a space that nobody added, are ValueErrors."""
    limited: list[Callable[[], object]] = [
        lambda: store.incomplete(SPACE, 0),
        lambda: store.keys(SPACE, limit=0),
        lambda: store.search_text(SPACE, "x", limit=0),
        lambda: store.runs(0),
        lambda: store.incomplete("?"),
        lambda: store.chunks_of("x", "?"),
        lambda: store.find_by_text_hash("?", []),
        lambda: store.chunks("?", []),
        lambda: store.keys("?"),
        lambda: store.search_text("?", "x", limit=1),
        lambda: store.activate("?"),
    ]
    for call in limited:
        with pytest.raises(ValueError, match=r"limit|never added"):
            call()


def test_a_store_in_use_is_whole(store: MetadataStore) -> None:
    """Whatever was written, changed and removed, nothing is damaged, and mending the full text changes no answer."""
    store.apply([upsert("a", "blue whale", "red fox"), upsert("b", "blue fox")])
    store.apply([upsert("a", "red fox", "green fox"), Delete("file:///b")])
    assert (list(store.check()), store.text_is_whole()) == ([], True)
    store.mend_text()
    assert store.text_is_whole()
    assert (uris(store, "fox"), uris(store, "blue")) == (["a", "a"], [])


def test_a_closed_store_says_so(store: MetadataStore) -> None:
    """After close, which may be repeated, every call is a ValueError."""
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.apply([]),
        lambda: list(store.ledger()),
        lambda: store.document("x"),
        store.counts,
        lambda: store.keys(SPACE),
        lambda: store.search_text(SPACE, "x", limit=1),
        lambda: store.add_space("x"),
        store.active_space,
        store.runs,
        store.versions,
        store.check,
        store.text_is_whole,
        store.mend_text,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
