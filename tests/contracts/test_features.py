"""What every store of online features does, and what Feast's do besides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from operators.errors import ConfigError, ThrottledError, UnavailableError
from stores.features import Features, OnlineRow, View, open_features, views_of
from stores.features.feast import FeastFeatures
from stores.features.memory import MemoryFeatures
from stores.features.newest import coalesce
from stores.features.retry import RetryingFeatures
from stores.patience import Patience
from tests.feature_rows import feature_repository, feature_rows, no_settings, room_sets
from tests.redis_server import Redis

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning",  # Feast's and its libraries' own
    "ignore:.*:FutureWarning",
)

VIEWS = views_of(room_sets())
VIEW = VIEWS[0]
SECOND_US = 1_000_000
NOON_US = 1_700_000_000 * SECOND_US


@dataclass(frozen=True)
class Store:
    """An adapter under test: `features` is open and prepared, `reopen` gives it as a new process finds it."""

    features: Features
    reopen: Callable[[], Features]


@pytest.fixture(scope="module", autouse=True)
def _no_settings() -> Iterator[None]:
    """What is set where the tests run changes nothing in them."""
    with no_settings():
        yield


@pytest.fixture(scope="module", params=["memory", "feast-sqlite", "feast-redis"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Every adapter in turn; the tests of a module share one and use entities of their own."""
    match request.param:
        case "memory":
            features = MemoryFeatures()
            features.prepare(VIEWS)
            yield Store(features, lambda: features)
        case "feast-sqlite":
            yield from _feast_store(feature_repository(tmp_path_factory.mktemp("sqlite")))
        case "feast-redis":
            with closing(Redis(tmp_path_factory.mktemp("redis"))) as redis:
                yield from _feast_store(redis.repository())


@pytest.fixture
def entity(request: pytest.FixtureRequest) -> str:
    """An entity that no other test uses."""
    return str(request.node.name)


def _feast_store(repository: Path) -> Iterator[Store]:
    def reopen() -> Features:
        features = FeastFeatures(repository)
        opened.append(features)
        return features

    opened: list[Features] = []
    first = reopen()
    first.prepare(VIEWS)
    yield Store(first, reopen)
    for features in opened:
        features.close()


def _row(entity: str, second: float, last: float | None, revision: int = 0) -> dict[str, object]:
    event_time = NOON_US + int(second * SECOND_US)
    return {"entity_id": entity, "event_time": event_time, "revision": revision, "heat__last": last}


def _write(features: Features, *rows: dict[str, object], view: View = VIEW) -> None:
    features.write(view, feature_rows(view, rows))


def _last(features: Features, entity: str, view: View = VIEW) -> float | int | None:
    (row,) = features.read(view, [entity])
    assert row is not None
    return row.values["heat__last"]


def test_what_is_written_is_served(store: Store, entity: str) -> None:
    """A row is served with its exact time, counts as int, floats bit for bit and nulls as None."""
    time_us = NOON_US + 123_457
    row = {"entity_id": entity, "event_time": time_us, "heat__count": 7, "heat__mean": 0.1 + 0.2, "heat__last": None}
    _write(store.features, row)
    values = {"heat__count": 7, "heat__mean": 0.1 + 0.2, "heat__last": None}
    assert store.features.read(VIEW, [entity]) == [OnlineRow(entity, time_us, values)]


def test_what_is_not_served_to_the_bit_is_told_from_what_is(store: Store, entity: str) -> None:
    """Another time, one bit of a value, a null for a value, a revision or an unknown entity make a row unlike."""
    served = {"event_time": NOON_US + 5, "heat__count": 7, "heat__mean": 0.3, "heat__last": -0.0, "revision": 0}
    changes: list[dict[str, object]] = [
        {"event_time": NOON_US + 6}, {"heat__count": 8}, {"heat__mean": 0.1 + 0.2}, {"heat__mean": None},
        {"heat__last": 0.0}, {"entity_id": f"{entity} nobody"},
    ]  # fmt: skip
    rows = [{"entity_id": f"{entity} {i}", **served} for i in range(len(changes) + 2)]
    _write(store.features, *rows)
    asked = feature_rows(VIEW, [row | change for row, change in zip(rows, [*changes, {}, {}], strict=True)])
    found = store.features.unlike(VIEW, asked).tolist()
    assert found[:-2] == [True] * len(changes)
    if "redis" not in entity:
        assert found[-2:] == [False, False]
    assert len(store.features.unlike(VIEW, asked.slice(0, 0))) == 0


def test_an_unknown_entity_is_none_at_its_place(store: Store, entity: str) -> None:
    """Reading gives one answer for each entity asked, in that order, twice if asked twice."""
    _write(store.features, _row(entity, 0, 1.0))
    answers = store.features.read(VIEW, ["nobody", entity, entity])
    assert [answer and answer.entity_id for answer in answers] == [None, entity, entity]
    assert store.features.read(VIEW, []) == []


def test_views_do_not_mix(store: Store, entity: str) -> None:
    """A row of one window is not served for another."""
    _write(store.features, _row(entity, 0, 1.0))
    assert store.features.read(VIEWS[1], [entity]) == [None]


def test_an_older_row_changes_nothing(store: Store, entity: str) -> None:
    """Neither an older window nor an older revision replaces what is served."""
    _write(store.features, _row(entity, 10, 2.0, revision=1))
    _write(store.features, _row(entity, 0, 1.0))
    _write(store.features, _row(entity, 10, 1.5))
    assert _last(store.features, entity) == 2.0


def test_a_correction_replaces_its_row(store: Store, entity: str) -> None:
    """The higher revision of a window is served, with the window's own time."""
    _write(store.features, _row(entity, 10, 1.0))
    _write(store.features, _row(entity, 10, 2.0, revision=1))
    (row,) = store.features.read(VIEW, [entity])
    assert row == OnlineRow(entity, NOON_US + 10 * SECOND_US, {"heat__count": 1, "heat__mean": None, "heat__last": 2.0})


def test_null_replaces_a_value(store: Store, entity: str) -> None:
    """A feature that is undefined in the newest row is not served from an older one."""
    _write(store.features, _row(entity, 0, 1.0))
    _write(store.features, _row(entity, 10, None))
    assert _last(store.features, entity) is None


def test_rows_of_a_batch_are_coalesced(store: Store, entity: str) -> None:
    """Of several rows of an entity in one batch the newest is served, wherever it stands."""
    rows = [_row(entity, s, float(s)) for s in (10, 30, 20)] + [_row(f"{entity}2", 5, 5.0)]
    _write(store.features, *rows)
    assert (_last(store.features, entity), _last(store.features, f"{entity}2")) == (30.0, 5.0)


def test_an_empty_batch_does_nothing(store: Store) -> None:
    """Writing no rows is allowed."""
    store.features.write(VIEW, feature_rows(VIEW, []))


@pytest.mark.parametrize(
    "odd", ["a b", "ä🌊", "quote'\"", "line\nbreak", "../..", "x" * 10_000, "1:2|3,4"], ids=range(7)
)
def test_an_entity_is_any_string(store: Store, odd: str) -> None:
    """Spaces, emoji, quotes, line breaks, dots and 10 kB keep their rows apart."""
    _write(store.features, _row(odd, 0, 1.0), _row(f"{odd} ", 0, 2.0))
    assert (_last(store.features, odd), _last(store.features, f"{odd} ")) == (1.0, 2.0)


def test_a_large_batch_is_served_whole(store: Store, entity: str) -> None:
    """More rows than an adapter hands on at once are all served, and read back in one call."""
    names = [f"{entity}-{i}" for i in range(2_345)]
    _write(store.features, *(_row(name, 0, float(i)) for i, name in enumerate(names)))
    answers = store.features.read(VIEW, names)
    assert [answer and answer.values["heat__last"] for answer in answers] == [float(i) for i in range(2_345)]


def test_nothing_goes_back_after_a_restart(store: Store, entity: str) -> None:
    """A replay by a new process replaces neither a later row of the same second nor a correction."""
    _write(store.features, _row(entity, 10.5, 3.0, revision=1))
    again = store.reopen()
    again.prepare(VIEWS)
    for row in (_row(entity, 0, 0.0), _row(entity, 10.25, 1.0), _row(entity, 10.5, 2.0)):
        _write(again, row)
        assert _last(again, entity) == 3.0
    _write(again, _row(entity, 10.75, 4.0))
    assert _last(again, entity) == 4.0


def test_preparing_twice_keeps_what_is_served(store: Store, entity: str) -> None:
    """Getting ready again loses no row."""
    _write(store.features, _row(entity, 0, 1.0))
    store.features.prepare(VIEWS)
    assert _last(store.features, entity) == 1.0


def test_an_entity_is_forgotten_in_every_view(store: Store, entity: str) -> None:
    """Its rows go, those of others stay; a row that comes later is served, however old it is; twice is once."""
    for view in VIEWS[:2]:
        _write(store.features, _row(entity, 10, 1.0), _row(f"{entity}2", 10, 2.0), view=view)
    again = store.reopen()
    assert again.forget(entity) == 2
    assert again.forget(entity) == 0
    for view in VIEWS[:2]:
        assert store.features.read(view, [entity]) == [None]
        assert _last(store.features, f"{entity}2", view) == 2.0
    _write(again, _row(entity, 0, 3.0))
    assert _last(again, entity) == 3.0


def test_no_byte_of_a_forgotten_entity_is_left_in_sqlite(tmp_path: Path) -> None:
    """Neither in tables nor in what SQLite keeps of deleted rows."""
    repository = feature_repository(tmp_path)
    features = FeastFeatures(repository)
    features.prepare(VIEWS)
    name = "zyxq-unmistakable-7"
    _write(features, *(_row(f"other-{n}", 0, 1.0) for n in range(300)), _row(name, 0, 1.0))

    def holding() -> list[Path]:
        return [p for p in tmp_path.rglob("*") if p.is_file() and name.encode() in p.read_bytes()]

    assert holding()
    assert features.forget(name) == 1
    assert holding() == []
    features.close()


def test_an_unknown_view_is_a_matter_for_a_person(store: Store) -> None:
    """A view that nobody prepared is refused by name, for reading and writing."""
    stranger = View(replace(VIEW.feature_set, name="stranger"), VIEW.window)
    with pytest.raises(ConfigError, match="stranger_v1_10s"):
        _write(store.features, _row("a", 0, 1.0), view=stranger)
    with pytest.raises(ConfigError, match="stranger_v1_10s"):
        store.features.read(stranger, ["a"])


KEYS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.integers(0, 2)), max_size=8)
"""Entity, quarter of a second, revision."""

EXAMPLES = itertools.count()
"""Keeps the entities of the examples apart, which share a store."""


@settings(max_examples=25)
@given(batches=st.lists(st.tuples(KEYS, st.booleans()), max_size=5))
def test_the_newest_of_all_is_served(store: Store, batches: list[tuple[list[tuple[str, int, int]], bool]]) -> None:
    """Whatever the order, the batches, the repetitions and the restarts, each entity serves its newest row."""
    example = next(EXAMPLES)
    features = store.features
    newest: dict[str, tuple[int, int]] = {}
    for keys, restart in batches:
        if restart:
            features = store.reopen()
        _write(
            features, *(_row(f"{e}{example}", time / 4, time * 10.0 + revision, revision) for e, time, revision in keys)
        )
        for name, quarter, revision in keys:
            newest[name] = max(newest.get(name, (-1, 0)), (quarter, revision))
        for name, (quarter, revision) in newest.items():
            assert _last(features, f"{name}{example}") == quarter * 10.0 + revision


@given(keys=KEYS)
def test_coalescing_keeps_the_newest_and_no_other(keys: list[tuple[str, int, int]]) -> None:
    """One row an entity is left, the one with the highest (event_time, created_at), whatever the order."""
    rows = feature_rows(VIEW, [_row(e, time / 4, time * 10.0 + revision, revision) for e, time, revision in keys])
    newest = {e: max(time * 10.0 + revision for f, time, revision in keys if f == e) for e, _, _ in keys}
    left = coalesce(rows)
    assert left.schema == rows.schema
    assert list(zip(left["entity_id"].to_pylist(), left["heat__last"].to_pylist(), strict=True)) == sorted(
        newest.items()
    )


class AwayFor:
    """A store that raises an error a number of times before each call reaches it."""

    def __init__(self, times: int, error: Exception) -> None:
        """Raise `error` for the first `times` calls."""
        self.inner = MemoryFeatures()
        self._left = times
        self._error = error

    def prepare(self, views: Sequence[View]) -> None:
        """Pass on."""
        self._fail()
        self.inner.prepare(views)

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Pass on."""
        self._fail()
        self.inner.write(view, rows)

    def read(self, view: View, entity_ids: Sequence[str]) -> list[OnlineRow | None]:
        """Pass on."""
        self._fail()
        return self.inner.read(view, entity_ids)

    def unlike(self, view: View, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Pass on."""
        self._fail()
        return self.inner.unlike(view, rows)

    def forget(self, entity_id: str) -> int:
        """Pass on."""
        self._fail()
        return self.inner.forget(entity_id)

    def close(self) -> None:
        """Pass on."""
        self.inner.close()

    def _fail(self) -> None:
        if self._left:
            self._left -= 1
            raise self._error


def test_a_store_that_is_away_is_asked_again_with_growing_pauses() -> None:
    """The call succeeds when the store is back; pauses double up to their limit."""
    pauses: list[float] = []
    away = AwayFor(5, UnavailableError("away"))
    features = RetryingFeatures(away, Patience(pause_s=1, pause_s_max=5, sleep=pauses.append))
    features.prepare(VIEWS)
    _write(features, _row("a", 0, 1.0))
    assert _last(features, "a") == 1.0
    assert pauses == [1, 2, 4, 5, 5]


def test_a_store_that_names_its_pause_gets_it() -> None:
    """When the other side says how long to wait, so long is waited."""
    pauses: list[float] = []
    error = ThrottledError("slowly", retry_after_s=7.5)
    RetryingFeatures(AwayFor(1, error), Patience(sleep=pauses.append)).prepare(VIEWS)
    assert pauses == [7.5]


def test_patience_ends() -> None:
    """A store that stays away raises its own error in the end; what a person must mend is raised at once."""
    pauses: list[float] = []
    patience = Patience(tries_max=4, sleep=pauses.append)
    with pytest.raises(UnavailableError, match="away"):
        RetryingFeatures(AwayFor(9, UnavailableError("away")), patience).prepare(VIEWS)
    with pytest.raises(ConfigError):
        RetryingFeatures(AwayFor(9, ConfigError("wrong")), Patience(sleep=pauses.append)).prepare(VIEWS)
    assert len(pauses) == 3


def test_the_scheme_chooses_the_store() -> None:
    """`memory:` serves, `none:` keeps nothing, anything else is named in the complaint."""
    kept = {}
    for url in ("memory:", "none:"):
        features = open_features(url)
        features.prepare(VIEWS)
        _write(features, _row("a", 0, 1.0))
        kept[url] = features.read(VIEW, ["a"]) != [None]
        features.close()
    assert kept == {"memory:": True, "none:": False}
    for url in ("redis:", "feast:", ""):
        with pytest.raises(ConfigError, match=f"online store `{url}` is unknown"):
            open_features(url)
