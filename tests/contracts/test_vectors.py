"""What every vector store promises, and what usearch on disk adds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.documents import doc_id
from operators.errors import ConfigError
from stores.vectors import drop_vectors, list_spaces, open_vectors
from stores.vectors.elements import decode, encode
from stores.vectors.port import KEY_MAX, Element, Hit, VectorReader, VectorStore, best, recall, scores_of, shard_of
from tests.vector_rows import DIM, SPACE, holds, keys, local_store, put, row, rows

TOLERANCE: dict[str, float] = {"memory": 1e-6, "f32": 1e-6, "f16": 1e-3, "i8": 5e-3}
ELEMENTS: tuple[Element, ...] = ("f32", "f16", "i8")


@dataclass(frozen=True, slots=True)
class Kind:
    """A store to test and how precise it is."""

    name: str
    store: VectorStore
    tolerance: float


def open_kind(name: str, folder: Path, *, shards: int = 3, compact_rows: int = 8) -> VectorStore:
    """A store that compacts all the time."""
    if name == "memory":
        return open_vectors("memory:", SPACE, DIM, shards=shards)
    return local_store(folder, shards=shards, compact_rows=compact_rows, element=name)  # type: ignore[arg-type]


@pytest.fixture(params=sorted(TOLERANCE))
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """One empty store of each kind."""
    return Kind(request.param, open_kind(request.param, tmp_path / "vectors"), TOLERANCE[request.param])


def test_vectors_come_back_and_are_replaced(kind: Kind) -> None:
    """A put is there after commit and refresh, not before; putting the key again replaces it, a delete removes it."""
    writer, reader = kind.store.write(0), kind.store.read()
    versions = dict.fromkeys(range(20), 0)
    writer.put(keys(versions), rows(versions))
    reader.refresh()
    assert holds(reader, {})
    writer.commit()
    assert holds(reader, {})
    reader.refresh()
    assert holds(reader, versions, tolerance=kind.tolerance)
    put(writer, dict.fromkeys(range(5, 10), 1))
    writer.delete(keys([0, 1, 999]))
    writer.commit()
    reader.refresh()
    expected = {key: int(5 <= key < 10) for key in range(2, 20)}
    assert holds(reader, expected, tolerance=kind.tolerance)
    assert reader.search(row(7, 1), 1)[0].key == 7
    assert reader.search(row(0), 20, exact=True)[0].score < 0.99
    writer.close()
    assert holds(kind.store.read(), expected, tolerance=kind.tolerance)


def test_the_last_of_one_commit_wins(kind: Kind) -> None:
    """Within a commit the last of equal keys, and of put and delete, counts; what was not committed is dropped."""
    writer = kind.store.write(1)
    writer.put(keys([1, 2, 1, 3]), np.stack([row(1, 0), row(2, 0), row(1, 1), row(3, 0)]))
    writer.delete(keys([2, 3]))
    writer.put(keys([3]), row(3, 5)[np.newaxis])
    writer.commit()
    writer.put(keys([9]), row(9)[np.newaxis])
    writer.close()
    assert holds(kind.store.read(), {1: 1, 3: 5}, tolerance=kind.tolerance)


def test_nothing_is_nothing(kind: Kind) -> None:
    """Empty calls change nothing, and an empty store has nothing to find."""
    reader = kind.store.read()
    assert (reader.count(), reader.keys().size, reader.search(row(1), 3)) == (0, 0, [])
    assert reader.search(row(1), 3, exact=True) == reader.search(row(1), 3, among=keys([1])) == []
    vectors, found = reader.get(keys([]))
    assert (vectors.shape, found.shape) == ((0, DIM), (0,))
    assert recall(reader, rows({1: 0})) == 1.0
    writer = kind.store.write(0)
    writer.put(keys([]), rows({}))
    writer.delete(keys([]))
    writer.commit()
    reader.refresh()
    assert reader.count() == 0
    assert kind.store.check() == []


def test_results_are_ordered_by_score_then_key(kind: Kind) -> None:
    """Equal vectors stand in the order of their keys, in whichever shards; the limit cuts behind the best."""
    same = keys([700, 5, 30, 2**63, KEY_MAX])
    for shard, some in enumerate((same[:2], same[2:])):
        writer = kind.store.write(shard)
        writer.put(some, np.stack([row(1)] * some.size))
        put(writer, dict.fromkeys(range(100 + 40 * shard, 140 + 40 * shard), 0))
        writer.close()
    reader = kind.store.read()
    hits = reader.search(row(1), 85, exact=True)
    assert [hit.key for hit in hits[:5]] == sorted(same.tolist())
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.key))
    assert len(hits) == 85 == len(reader.search(row(1), 10_000))
    assert reader.search(row(1), 3, exact=True) == hits[:3]
    assert hits[0].score == pytest.approx(1.0, abs=1e-3)
    assert reader.search(row(1) * 1e-20, 85, exact=True) == hits  # the query's length is of no account


def test_search_among_keys(kind: Kind) -> None:
    """Only the keys of a filter are compared, and all of them; unknown ones and repeats do not matter."""
    writer = kind.store.write(0)
    put(writer, dict.fromkeys(range(50), 0))
    reader = kind.store.read()
    everything = reader.search(row(3), 50, exact=True)
    some = keys([40, 3, 3, 17, 12_345, 22])
    expected = [hit for hit in everything if hit.key in some.tolist()]
    assert reader.search(row(3), 10, among=some) == expected
    assert reader.search(row(3), 2, among=some) == expected[:2]
    assert reader.search(row(3), 2, among=keys([])) == []


def test_a_copied_vector_does_not_decay(kind: Kind) -> None:
    """A vector that is read and put under another key, again and again, keeps every bit."""
    writer, reader = kind.store.write(0), kind.store.read()
    put(writer, dict.fromkeys(range(30), 0))
    reader.refresh()
    first, _ = reader.get(keys(range(30)))
    for start in (100, 200, 300):
        vectors, found = reader.get(keys(range(start - 100, start - 70)))
        assert found.all()
        writer.put(keys(range(start, start + 30)), vectors)
        writer.commit()
        reader.refresh()
    assert np.array_equal(reader.get(keys(range(300, 330)))[0], first)


def test_a_shard_has_one_writer(kind: Kind) -> None:
    """A second writer is refused and says so; other shards are free; after close the shard is free again."""
    writer = kind.store.write(1)
    with pytest.raises(ConfigError, match=r"writer"):
        kind.store.write(1)
    kind.store.write(2).close()
    writer.close()
    writer.close()
    kind.store.write(1).close()
    for shard in (-1, 3):
        with pytest.raises(ValueError, match="shard"):
            kind.store.write(shard)


def test_wrong_input_is_refused(kind: Kind) -> None:
    """Shapes, lengths and numbers that no embedder makes do not get in, and change nothing."""
    writer, reader = kind.store.write(0), kind.store.read()
    good = row(1)[np.newaxis]
    for wrong in (good * 2, good * np.nan, good * 0, good[:, :-1], np.concatenate([good, good])):
        with pytest.raises(ValueError, match=r"length|shape"):
            writer.put(keys([1]), wrong)
    for wrong_keys in (np.array([1]), np.array([[1]], np.uint64), keys([KEY_MAX + 1])):
        with pytest.raises(ValueError, match="key"):
            writer.put(wrong_keys.astype(wrong_keys.dtype), good)
    for query, limit in ((row(1) * 0, 1), (row(1) * np.nan, 1), (row(1)[1:], 1), (row(1), 0)):
        with pytest.raises(ValueError, match=r"query|limit"):
            reader.search(query, limit)
    writer.commit()
    reader.refresh()
    assert reader.count() == 0


def test_what_is_put_may_change_afterwards(kind: Kind) -> None:
    """Vectors are copied: the caller may use the array again before the commit."""
    writer = kind.store.write(0)
    vectors = rows({1: 0})
    writer.put(keys([1]), vectors)
    vectors[:] = 0
    writer.commit()
    assert holds(kind.store.read(), {1: 0}, tolerance=kind.tolerance)


def test_closed_is_closed(kind: Kind) -> None:
    """Use after close is a mistake of the caller, closing twice is none."""
    writer, reader = kind.store.write(0), kind.store.read()
    for closed in (writer, reader):
        closed.close()
        closed.close()
    for call in (writer.commit, reader.refresh, reader.count, reader.keys, lambda: reader.search(row(1), 1)):
        with pytest.raises(ValueError, match="closed"):
            call()


Step = tuple[str, int, list[int]]
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "commit", "reopen"]),
        st.integers(0, 2),
        st.lists(st.integers(0, 29), max_size=12),
    ),
    max_size=25,
)


@settings(max_examples=100)
@given(name=st.sampled_from(sorted(TOLERANCE)), changes=steps)
def test_any_changes_leave_what_a_dictionary_would(name: str, changes: list[Step]) -> None:
    """After any puts, deletes, commits and reopenings a reader, new or refreshed, sees what a dictionary holds."""
    with TemporaryDirectory() as folder:
        store = open_kind(name, Path(folder), shards=1)
        reader, writer = store.read(), store.write(0)
        committed: dict[int, int] = {}
        pending: dict[int, int] = {}
        for action, version, numbers in [*changes, ("commit", 0, [])]:
            if action == "put":
                versions = dict.fromkeys(numbers, version)
                writer.put(keys(versions), rows(versions))
                pending |= versions
            elif action == "delete":
                writer.delete(keys(numbers))
                pending = {key: old for key, old in pending.items() if key not in numbers}
            elif action == "commit":
                writer.commit()
                committed = dict(pending)
                reader.refresh()
                assert holds(reader, committed, tolerance=TOLERANCE[name])
            else:
                writer.close()
                writer, pending = store.write(0), dict(committed)
        writer.close()
        reader.refresh()
        for one in (reader, store.read()):
            assert holds(one, committed, tolerance=TOLERANCE[name])
            check_search(one, committed)
            one.close()
        assert store.check() == []


def check_search(reader: VectorReader, committed: dict[int, int]) -> None:
    """Searches find as many as there are, and exact ones what direct comparison of the stored vectors gives."""
    present = keys(sorted(committed))
    vectors, _ = reader.get(present)
    for number in (3, 77):
        query = row(number).astype(np.float64)
        scores = scores_of(query / np.linalg.norm(query), vectors)
        expected = [Hit(int(present[i]), float(scores[i])) for i in best(present, scores, 5)]
        assert reader.search(row(number), 5, exact=True) == expected
        quick = reader.search(row(number), 5)
        assert len(quick) == len(expected)
        assert set(quick) <= {Hit(int(k), float(s)) for k, s in zip(present, scores, strict=True)}


@settings(max_examples=30)
@given(st.sampled_from(ELEMENTS), st.integers(1, 40), st.integers(0, 2**32))
def test_encoding_what_was_decoded_gives_the_same(element: Element, dim: int, seed: int) -> None:
    """Coding is stable after the first time, for vectors of any length."""
    vectors = np.random.default_rng(seed).standard_normal((5, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = encode(vectors, element)
    assert np.array_equal(encode(decode(stored), element), stored)


def test_documents_spread_over_shards() -> None:
    """A document has one shard, whatever its chunks, and every shard gets about as many of them."""
    names = [doc_id(f"file:///docs/{n}.md") for n in range(2_000)]
    counts = np.bincount([shard_of(name, 4) for name in names], minlength=4)
    assert counts.sum() == 2_000
    assert counts.min() > 430


def test_spaces_stand_beside_each_other(tmp_path: Path) -> None:
    """Each space has its own vectors; one that is dropped is gone, the others stay."""
    url = f"usearch:///{tmp_path}/v"
    assert list_spaces(url) == []
    for space in ("openai-BAAI/bge ü-16", "stub-16"):
        writer = open_vectors(url, space, DIM).write(0)
        put(writer, {len(space): 0})
        writer.close()
    assert list_spaces(url) == ["openai-BAAI/bge ü-16", "stub-16"]
    reader = open_vectors(url, "stub-16", DIM).read()
    writer = open_vectors(url, "openai-BAAI/bge ü-16", DIM).write(3)
    with pytest.raises(ConfigError, match="writer"):
        drop_vectors(url, "openai-BAAI/bge ü-16")
    writer.close()
    for _ in range(2):
        drop_vectors(url, "stub-16")
    assert holds(reader, {7: 0}, tolerance=1e-3)  # a view stays what it was
    reader.refresh()
    assert holds(reader, {})
    assert list_spaces(url) == ["openai-BAAI/bge ü-16"]
    assert [p.name for p in (tmp_path / "v").iterdir()] == ["openai-BAAI%2Fbge%20%C3%BC-16"]
    drop_vectors("memory:", "stub-16")
    assert list_spaces("memory:") == []


@pytest.mark.parametrize(
    ("url", "space", "dim", "said"),
    [
        ("faiss:///x", "s", 3, "memory, usearch"),
        ("usearch:data", "s", 3, "usearch:///data/vectors"),
        ("usearch:///", "s", 3, "usearch:///data/vectors"),
        ("memory:", "..", 3, "name"),
        ("memory:", "", 3, "name"),
        ("memory:", "s", 0, "numbers"),
    ],
)
def test_wrong_names_are_refused(url: str, space: str, dim: int, said: str) -> None:
    """What cannot be a store is for a person to mend, with what to write."""
    with pytest.raises(ConfigError, match=said):
        open_vectors(url, space, dim)


def test_a_store_is_opened_as_it_was_made(tmp_path: Path) -> None:
    """Another dimension, precision or number of shards is refused, and says what it was made with."""
    url = f"usearch:///{tmp_path}"
    early = open_vectors(url, "s", DIM, shards=3)  # before there is anything
    open_vectors(url, "s", DIM, shards=2).write(0).close()
    for dim, shards, element in ((DIM + 1, 2, "f16"), (DIM, 4, "f16"), (DIM, 2, "i8")):
        with pytest.raises(ConfigError, match=r"made with (dim|shards|element)"):
            open_vectors(url, "s", dim, shards=shards, element=element)  # type: ignore[arg-type]  # a tuple of strings
    with pytest.raises(ConfigError, match="made with shards `2`"):
        early.write(0)
