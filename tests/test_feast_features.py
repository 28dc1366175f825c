"""What Feast's stores add to the contract of online features: registries, restarts and servers that are away."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError
from stores.features import Features, View, open_features, views_of
from stores.features import feast as feast_store
from stores.features.feast import FeastFeatures
from stores.features.feast_sqlite import sqlite_lane
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


@pytest.fixture(scope="module", autouse=True)
def _no_settings() -> Iterator[None]:
    """What is set where the tests run changes nothing in them."""
    with no_settings():
        yield


def _write(features: Features, last: float, view: View = VIEW) -> None:
    features.write(
        view, feature_rows(view, [{"entity_id": "a", "event_time": 1_700_000_000_000_000, "heat__last": last}])
    )


def _last(features: Features, view: View = VIEW) -> float | int | None:
    (row,) = features.read(view, ["a"])
    assert row is not None
    return row.values["heat__last"]


def test_a_locked_sqlite_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row written while another process holds the database arrives when it lets go."""
    connect = sqlite3.connect
    repository = feature_repository(tmp_path)
    # Feast leaves SQLite's own patience at five seconds; the test has less.
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0.01}))
    pauses: list[float] = []

    def let_go(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            other.execute("ROLLBACK")

    inner = FeastFeatures(repository)
    inner.prepare(VIEWS)
    other = connect(tmp_path / "data" / "online.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    features = RetryingFeatures(inner, Patience(sleep=let_go))
    _write(features, 1.0)
    assert _last(features) == 1.0
    assert pauses == [0.1, 0.2, 0.4]
    other.close()
    features.close()


def test_a_stopped_redis_is_waited_for(tmp_path: Path) -> None:
    """A row written while the server is down arrives when it is back."""
    with closing(Redis(tmp_path)) as redis:
        pauses: list[float] = []

        def come_back(pause_s: float) -> None:
            pauses.append(pause_s)
            if len(pauses) == 2:
                redis.start()

        inner = FeastFeatures(redis.repository())
        inner.prepare(VIEWS)
        redis.close()
        features = RetryingFeatures(inner, Patience(sleep=come_back))
        _write(features, 1.0)
        assert _last(features) == 1.0
        assert pauses == [0.1, 0.2]
        features.close()


def test_a_removed_online_store_is_made_again(tmp_path: Path) -> None:
    """Without its tables a write says what to type; preparing again makes them."""
    repository = feature_repository(tmp_path)
    with closing(FeastFeatures(repository)) as features:
        features.prepare(VIEWS)
    (tmp_path / "data" / "online.db").unlink()
    with closing(FeastFeatures(repository)) as features:
        with pytest.raises(ConfigError, match=r"no such table.*type: feast -c .*feature_repo apply"):
            _write(features, 1.0)
        features.prepare(VIEWS)
        _write(features, 1.0)
        assert _last(features) == 1.0


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(allow_nan=False),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=15)
def test_the_fast_lane_leaves_what_feast_would_have_left(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, float | None]]
) -> None:
    """Many values by one statement or each by its own: the same tables, value for value, and the same answers."""
    made = feature_rows(VIEW, [
        {"entity_id": f"é{e}", "event_time": (i + 1) * 1_000_000, "heat__count": c, "heat__last": x}
        for i, (e, c, x) in enumerate(rows)
    ])  # fmt: skip
    tables, answers = [], []
    for lane in (sqlite_lane, lambda *_: None):
        repository = feature_repository(tmp_path_factory.mktemp("lane"))
        with pytest.MonkeyPatch.context() as patch, closing(FeastFeatures(repository)) as features:
            patch.setattr(feast_store, "sqlite_lane", lane)
            features.prepare([VIEW])
            for some in (made.slice(0, len(made) // 2), made):
                features.write(VIEW, some)
            answers.append(features.read(VIEW, [f"é{e}" for e in range(4)]))
        with closing(sqlite3.connect(repository.parent / "data" / "online.db")) as database:
            (table,) = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()
            columns = "entity_key, feature_name, value, event_ts, created_ts"
            tables.append(database.execute(f'SELECT {columns} FROM "{table}" ORDER BY 1, 2').fetchall())  # noqa: S608  # Feast's name
    assert tables[0] == tables[1]
    assert answers[0] == answers[1]


def test_a_shared_registry_is_left_to_a_person(tmp_path: Path) -> None:
    """Where the registry is no local file, a missing view is an error that holds the command to type."""
    repository = feature_repository(tmp_path)
    settings_file = repository / "feature_store.yaml"
    database = f"sqlite:///{tmp_path}/registry.sqlite"
    shared = f"registry:\n  registry_type: sql\n  path: {database}"
    settings_file.write_text(settings_file.read_text("utf-8").replace("registry: ../data/registry.db", shared), "utf-8")
    with closing(FeastFeatures(repository)) as features, pytest.raises(ConfigError) as caught:
        features.prepare(VIEWS)
    assert str(caught.value).endswith(f"`room_v1_10s` (and 2 more); type: feast -c {repository} apply")


def test_another_version_does_not_take_the_first_one_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing the views of version 2 leaves those of version 1 registered and their rows served."""
    repository = feature_repository(tmp_path)
    with closing(FeastFeatures(repository)) as features:
        features.prepare(VIEWS)
        _write(features, 1.0)
    monkeypatch.setenv("FEATURE_SET_VERSION", "2")
    second = tuple(View(replace(view.feature_set, version=2), view.window) for view in VIEWS)
    with closing(FeastFeatures(repository)) as features:
        features.prepare(second)
        _write(features, 2.0, view=second[0])
        assert (_last(features), _last(features, second[0])) == (1.0, 2.0)


def test_views_that_the_repository_declares_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow and a repository that read different settings stop before anything is written."""
    monkeypatch.setenv("FEATURE_WINDOWS", "5s")
    complaint = r"does not declare the view `room_v1_10s`.*FEATURE_WINDOWS"
    with closing(FeastFeatures(feature_repository(tmp_path))) as features, pytest.raises(ConfigError, match=complaint):
        features.prepare(VIEWS)
    assert not (tmp_path / "data").exists()


def test_a_folder_without_a_repository_is_refused(tmp_path: Path) -> None:
    """A wrong FEAST_REPO_PATH is named, and what should stand there."""
    with pytest.raises(ConfigError, match=r"FEAST_REPO_PATH `.*` holds no feature_store\.yaml"):
        open_features(f"feast:{tmp_path}").prepare(VIEWS)


@pytest.mark.parametrize(
    "broken",
    ["project: [password", "project: headrace\nonline_store: {type: sqlite, path: {password: 1}}"],
    ids=["yaml", "keys"],
)
def test_a_broken_feature_store_yaml_is_named_and_not_quoted(tmp_path: Path, broken: str) -> None:
    """What Feast does not understand is a matter for a person, and a password in it is not repeated."""
    repository = feature_repository(tmp_path)
    (repository / "feature_store.yaml").write_text(broken, "utf-8")
    with pytest.raises(ConfigError, match=r"feature_store\.yaml`") as caught:
        FeastFeatures(repository).read(VIEW, ["a"])
    assert "password" not in str(caught.value)
