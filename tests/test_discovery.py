"""Listing − ledger = work: what is planned, in whatever order, and what is never planned."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.sources.discovery import (
    Item,
    Listings,
    MassDeleteError,
    Renamed,
    Work,
    discover,
    plan,
    rename_candidates,
)
from dataflows.sources.memory import MemorySource
from operators.documents import Found, content_hash, memo_key
from operators.errors import ConfigError, UnavailableError
from stores.metadata.records import Known

SHAPE = "shape"
LIMIT = 1 << 20


def found(uri: str, content: str = "text", mark: str = "1") -> Found:
    """A listed document whose fingerprint is `mark`."""
    return Found(uri, mark, len(content))


def known(uri: str, content: str = "text", mark: str = "1", source: str = "s", shape: str = SHAPE) -> Known:
    """A line of the ledger."""
    contents = content_hash(content.encode())
    return Known(uri, source, mark, contents, memo_key(contents, shape), len(content))


def test_each_kind_of_work() -> None:
    """New, changed, gone, renamed, moved between sources, made under another shape, and unchanged."""
    listings = {
        "s": [found("new"), found("changed", mark="2"), found("reshaped"), found("same"), found("b", "moved")],
        "t": [found("handed over")],
    }
    ledger = [
        known("changed"),
        known("reshaped", shape="old"),
        known("same"),
        known("gone"),
        known("a", "moved"),
        known("handed over"),
    ]
    hashes = {"b": content_hash(b"moved"), "new": content_hash(b"else")}
    assert [item.found.uri for item in rename_candidates(listings, ledger)] == ["b", "new"]
    assert plan(listings, ledger, SHAPE, hashes=hashes) == Work(
        added=(Item("s", found("new")),),
        updated=(Item("s", found("changed", mark="2")), Item("s", found("reshaped"))),
        renamed=(Renamed(Item("s", found("b", "moved")), known("a", "moved")),),
        deleted=(known("gone"),),
        relisted=(Item("t", found("handed over")),),
        unchanged=2,
    )


def test_nothing_is_nothing() -> None:
    """No source and no ledger, and a listing that is what is known."""
    assert plan({}, [], SHAPE).nothing
    work = plan({"s": [found("a")]}, [known("a")], SHAPE)
    assert (work.nothing, work.found, work.unchanged) == (True, 1, 1)


def test_only_what_may_be_renamed_is_read() -> None:
    """Candidates are new documents that are as long as a vanished one; known ones, however changed, are not."""
    ledger = [known("gone", "four"), known("kept", "five!"), replace(known("never read", "seven"), content_hash="")]
    listings = {"s": [found("x", "4444"), found("y", "sixsix"), found("z", "five!"), found("kept", "4444", "2")]}
    assert [item.found.uri for item in rename_candidates(listings, ledger)] == ["x"]
    assert rename_candidates({"t": listings["s"]}, ledger) == ()


def test_equal_contents_are_paired_once_each() -> None:
    """Of two vanished and three new ones with equal content two are renames, in order, and one is new."""
    ledger = [known("a"), known("b"), *(known(f"stays {n}") for n in range(3))]
    listings = {"s": [found(name) for name in ("z", "y", "x")] + [found(f"stays {n}") for n in range(3)]}
    work = plan(listings, ledger, SHAPE, hashes=dict.fromkeys("xyz", content_hash(b"text")))
    assert [(r.old.uri, r.item.found.uri) for r in work.renamed] == [("a", "x"), ("b", "y")]
    assert ([item.found.uri for item in work.added], work.deleted) == (["z"], ())


def test_a_source_that_was_not_listed_keeps_its_documents() -> None:
    """Neither a source that failed nor one that is no longer named loses anything; given up it does, with the flag."""
    ledger = [known("a", source="away"), known("b")]
    work = plan({"s": [found("b")]}, ledger, SHAPE)
    assert (work.deleted, work.unchanged) == ((), 1)
    given_up = {"s": [found("b")], "away": []}
    with pytest.raises(MassDeleteError, match="away"):
        plan(given_up, ledger, SHAPE)
    assert plan(given_up, ledger, SHAPE, allow_mass_delete=True).deleted == (ledger[0],)


@pytest.mark.parametrize(("had", "left", "refused"), [(4, 2, False), (5, 2, True), (3, 0, True), (1, 0, True)])
def test_mass_deletes_are_refused(had: int, left: int, *, refused: bool) -> None:
    """More than half of a source's documents, or all of them, go only with the flag; the error names the counts."""
    ledger = [known(str(n)) for n in range(had)] + [known(f"t{n}", source="t") for n in range(10)]
    listings = {"s": [found(str(n)) for n in range(left)], "t": [found(f"t{n}") for n in range(10)]}
    if refused:
        with pytest.raises(MassDeleteError, match=f"`s` has lost {had - left} of its {had}.*--allow-mass-delete") as e:
            plan(listings, ledger, SHAPE)
        assert e.value.losses == {"s": (had - left, had)}
        assert isinstance(e.value, ConfigError)
    assert len(plan(listings, ledger, SHAPE, allow_mass_delete=True).deleted) == had - left


def test_a_renamed_folder_is_no_mass_delete() -> None:
    """Documents that are all found again under other uris are not lost."""
    ledger = [known(f"old/{n}", str(n)) for n in range(9)]
    listings = {"s": [found(f"new/{n}", str(n)) for n in range(9)]}
    hashes = {f"new/{n}": content_hash(str(n).encode()) for n in range(9)}
    work = plan(listings, ledger, SHAPE, hashes=hashes)
    assert (len(work.renamed), work.added, work.deleted) == (9, (), ())


URIS = st.sampled_from([f"u{n}" for n in range(8)])
CONTENTS = st.sampled_from(["", "a", "b", "cc", "dd"])
SOURCES = st.sampled_from(["s", "t"])
LEDGERS = st.dictionaries(URIS, st.tuples(CONTENTS, SOURCES, st.sampled_from([SHAPE, "old"])))
WORLDS = st.dictionaries(SOURCES, st.dictionaries(URIS, CONTENTS))


def lines(ledger: Mapping[str, tuple[str, str, str]]) -> list[Known]:
    """A ledger; the fingerprint of a document is its content."""
    return [known(uri, content, content, source, shape) for uri, (content, source, shape) in ledger.items()]


def listed(world: Mapping[str, Mapping[str, str]]) -> dict[str, list[Found]]:
    """The listings of a world."""
    return {name: [found(uri, text, text) for uri, text in texts.items()] for name, texts in world.items()}


def hashed(listings: Listings, ledger: Iterable[Known]) -> dict[str, str]:
    """What reading the candidates tells: contents are fingerprints here."""
    items = rename_candidates(listings, ledger)
    return {item.found.uri: content_hash(item.found.fingerprint.encode()) for item in items}


def carried_out(ledger: Iterable[Known], work: Work) -> dict[str, Known]:
    """The ledger after the work."""
    after = {line.uri: line for line in ledger}
    for line in [*work.deleted, *(rename.old for rename in work.renamed)]:
        del after[line.uri]
    for item in [*work.added, *work.updated, *work.relisted, *(rename.item for rename in work.renamed)]:
        text = item.found.fingerprint
        after[item.found.uri] = known(item.found.uri, text, text, item.source)
    return after


@given(ledger=LEDGERS, world=WORLDS)
def test_carrying_out_the_plan_gives_the_listing(
    ledger: dict[str, tuple[str, str, str]], world: dict[str, dict[str, str]]
) -> None:
    """Then the ledger is what is listed, and what belongs to sources that were not; a second plan is empty."""
    before, listings = lines(ledger), listed(world)
    hashes = hashed(listings, before)
    work = plan(listings, before, SHAPE, hashes=hashes, allow_mass_delete=True)
    after = carried_out(before, work)
    kept = {line.uri: line for line in before if line.source not in world}
    newest = {f.uri: f for name in sorted(world, reverse=True) for f in listings[name]}
    assert {uri: line.fingerprint for uri, line in after.items()} == {
        uri: newest[uri].fingerprint if uri in newest else kept[uri].fingerprint for uri in {*newest, *kept}
    }
    assert work.found == len(newest)
    again = plan(listings, after.values(), SHAPE)
    assert (again.nothing, again.unchanged) == (True, len(newest))


@given(ledger=LEDGERS, world=WORLDS, seed=st.randoms(use_true_random=False))
def test_no_order_changes_the_plan(
    ledger: dict[str, tuple[str, str, str]], world: dict[str, dict[str, str]], seed: random.Random
) -> None:
    """Sources, listings and ledger may come in any order, and a document may be listed twice."""
    before, listings = lines(ledger), listed(world)
    hashes = hashed(listings, before)
    expected = plan(listings, before, SHAPE, hashes=hashes, allow_mass_delete=True)
    names = seed.sample(sorted(listings), len(listings))
    shuffled = {name: seed.sample(2 * listings[name], 2 * len(listings[name])) for name in names}
    lines_shuffled = seed.sample(before, len(before))
    assert plan(shuffled, lines_shuffled, SHAPE, hashes=hashes, allow_mass_delete=True) == expected
    uris = [[item.found.uri for item in part] for part in (expected.added, expected.updated, expected.relisted)]
    assert [sorted(part) for part in uris] == uris


def test_discover_reads_only_candidates_and_survives_a_source_that_is_away() -> None:
    """A listing that fails half-way deletes nothing; a rename is found by content; what cannot be read is new."""
    near, away = MemorySource("near"), MemorySource("away")
    names = ["a", "b", "c"]
    ledger = [known(source.put(n, n.encode()), n, source=source.name) for source in (near, away) for n in names]
    ledger = [
        replace(line, fingerprint=f.fingerprint) for line, f in zip(ledger, [*near.list(), *away.list()], strict=True)
    ]
    near.drop("a")
    moved = near.put("z", b"a")
    away.drop("a")
    away.fails_after = (1, UnavailableError("gone fishing"))
    result = discover([near, away], ledger, SHAPE, limit_bytes=LIMIT)
    assert [(r.old.uri, r.item.found.uri) for r in result.work.renamed] == [("memory:near/a", moved)]
    assert (result.work.deleted, result.work.unchanged, list(result.failed)) == ((), 2, ["away"])
    unread = discover([near], ledger, SHAPE, limit_bytes=0).work
    assert ([i.found.uri for i in unread.added], [k.uri for k in unread.deleted]) == ([moved], ["memory:near/a"])


def test_a_source_that_nobody_names_any_more_is_given_up_with_the_flag() -> None:
    """Its documents stay, and are told of, until a mass delete is allowed; a source that is away keeps its own."""
    near, away = MemorySource("near"), MemorySource("away")
    away.put("b", b"b")
    away.fails_after = (0, UnavailableError("gone fishing"))
    ledger = [known("memory:old/a", "a", source="old"), known("memory:away/a", "a", source="away")]
    kept = discover([near, away], ledger, SHAPE, limit_bytes=LIMIT)
    assert (kept.work.deleted, dict(kept.unnamed)) == ((), {"old": 1})
    allowed = discover([near, away], ledger, SHAPE, limit_bytes=LIMIT, allow_mass_delete=True)
    assert ([line.uri for line in allowed.work.deleted], dict(allowed.unnamed)) == (["memory:old/a"], {})


def test_a_source_that_a_person_must_mend_stops_discovery() -> None:
    """Its ConfigError is not swallowed."""
    source = MemorySource("s")
    source.fails_after = (0, ConfigError("mend me"))
    source.put("a", b"a")
    with pytest.raises(ConfigError, match="mend me"):
        discover([source], [], SHAPE, limit_bytes=LIMIT)
