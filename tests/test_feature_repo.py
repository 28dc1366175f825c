"""Feast over the project's own declarations and the Parquet that the flow writes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.feature_sets import STATISTICS, FeatureSets, parse_feature_sets
from stores.features import View, view_name, views_of
from tests.feature_rows import (
    REPOSITORY,
    SETS,
    feature_repository,
    feature_rows,
    no_settings,
    room_sets,
    write_offline,
)

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

    from stores.features.feast import FeastFeatures

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning",  # Feast's and its libraries' own
    "ignore:.*:FutureWarning",
)

VIEW, SLIDING, SESSION = views_of(room_sets())
SECOND_US = 1_000_000
START = datetime(2016, 2, 15, 12, tzinfo=UTC)
"""Older than the year at which Feast's incremental materialization stops for views without a ttl."""


def _us(second: float) -> int:
    return int((START.timestamp() + second) * SECOND_US)


def _at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def _row(entity: str, second: float, last: float, revision: int = 0) -> dict[str, object]:
    return {"entity_id": entity, "event_time": _us(second), "revision": revision, "heat__last": last}


@pytest.fixture(scope="module", autouse=True)
def _no_settings() -> Iterator[None]:
    """What is set where the tests run changes nothing in them."""
    with no_settings():
        yield


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose repository `feast apply` has registered, as typed, before any run has written a row."""
    folder = tmp_path_factory.mktemp("project")
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(feature_repository(folder)), "apply"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def features(tmp_path: Path) -> Iterator[FeastFeatures]:
    """The adapter over the repository of `project`, prepared as a run prepares it."""
    from stores.features.feast import FeastFeatures

    opened = FeastFeatures(feature_repository(tmp_path))
    opened.prepare(views_of(room_sets()))
    yield opened
    opened.close()


@pytest.fixture
def project(tmp_path: Path, features: FeastFeatures) -> Path:
    """A project of the test's own, whose views a run has registered."""
    del features
    return tmp_path


def _store(project: Path) -> FeatureStore:
    from feast import FeatureStore

    return FeatureStore(repo_path=str(project / "feature_repo"))


def _frame(rows: Sequence[Mapping[str, object]]) -> Any:  # noqa: ANN401  # pandas carries no types here
    import pandas as pd

    return pd.DataFrame(rows)


def _history(store: FeatureStore, asked: Sequence[tuple[str, float]], view: View = VIEW) -> list[float | None]:
    """`heat__last` as point-in-time retrieval answers it, in the order asked."""
    questions = [
        {"entity_id": entity, "event_timestamp": _at(second), "asked": place}
        for place, (entity, second) in enumerate(asked)
    ]
    answer = store.get_historical_features(_frame(questions), [f"{view.name}:heat__last"]).to_df()
    found = sorted(zip(answer["asked"], answer["heat__last"], strict=True))
    assert [place for place, _ in found] == list(range(len(asked)))
    return [None if math.isnan(value) else float(value) for _, value in found]


def _online(store: FeatureStore, entities: Sequence[str], view: View = VIEW) -> list[float | None]:
    rows = [{"entity_id": entity} for entity in entities]
    answer: dict[str, list[float | None]] = store.get_online_features([f"{view.name}:heat__last"], rows).to_dict()
    return answer["heat__last"]


def _described(views: Iterable[FeatureView]) -> dict[str, tuple[dict[str, str], str]]:
    """Columns with their types, and the offline path, of every view."""
    return {
        view.name: (
            {field.name: str(field.dtype) for field in view.features},
            str(getattr(view.batch_source, "path", None)),
        )
        for view in views
    }


def _expected(sets: FeatureSets, offline: Path) -> dict[str, tuple[dict[str, str], str]]:
    return {
        view.name: (
            {column: "Int64" if column.endswith("__count") else "Float64" for column in view.columns},
            f"{offline}/features/{view.feature_set.name}/v{view.feature_set.version}/window={view.window.folder}",
        )
        for view in views_of(sets)
    }


def test_feast_apply_before_the_first_run_registers_everything(applied: Path) -> None:
    """`feast apply` needs no data: entity, a view and a push source each window, a service each set."""
    store = _store(applied)
    assert _described(store.list_feature_views()) == _expected(room_sets(), applied / "data" / "offline")
    names = ["room_v1_10s", "room_v1_1m_10s", "room_v1_session_30s"]
    sources = {source.name for source in store.list_data_sources()}
    assert sources >= {f"{name}_push" for name in names}
    assert [entity.join_key for entity in store.list_entities()] == ["entity_id"]
    (service,) = store.list_feature_services()
    assert service.name == "room_v1"
    assert sorted(projection.name for projection in service.feature_view_projections) == names


def test_feast_apply_after_a_run_changes_nothing(
    project: Path, features: FeastFeatures, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run registers is what `feast apply` would, and the rows it wrote stay served."""
    from feast.repo_operations import apply_total

    features.write(VIEW, feature_rows(VIEW, [_row("a", 10, 1.0)]))
    repository = project / "feature_repo"
    monkeypatch.chdir(repository)
    monkeypatch.syspath_prepend(repository)
    monkeypatch.delitem(sys.modules, "views", raising=False)
    apply_total(_store(project).config, repository, skip_source_validation=False)
    monkeypatch.delitem(sys.modules, "views", raising=False)
    assert "No changes to registry" in capsys.readouterr().out
    assert _online(_store(project), ["a"]) == [1.0]


@pytest.mark.parametrize("text", [SETS, (REPOSITORY / "feature_sets.toml").read_text("utf-8")], ids=["room", "shipped"])
@pytest.mark.parametrize("windows", [None, "5s, session:1m,2m/30s"], ids=["own", "overridden"])
@pytest.mark.parametrize("version", [None, 7], ids=["as-is", "v7"])
def test_views_are_those_of_the_flow(text: str, windows: str | None, version: int | None) -> None:
    """Names, columns, types, paths and overrides of Feast's views are what the flow makes of the same text."""
    from feature_repo.views import declare

    sets = parse_feature_sets(text, where="test", windows=windows, version=version)
    declared = declare(text, "/off", windows, version)
    assert _described(view for one in declared for view in one.views) == _expected(sets, Path("/off"))


def test_statistics_are_those_of_the_flow() -> None:
    """The two lists of statistics are one."""
    from feature_repo.views import STATISTICS as DECLARED

    assert DECLARED == STATISTICS


def test_a_view_is_named_without_signs() -> None:
    """`/` and `:` of a window become `_` in the name of its view."""
    names = [view_name(view.feature_set, view.window) for view in (VIEW, SLIDING, SESSION)]
    assert names == ["room_v1_10s", "room_v1_1m_10s", "room_v1_session_30s"]


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    """Relative paths start at the project's root, and what is empty counts as unset."""
    from feature_repo.views import declare_from

    (tmp_path / "sets.toml").write_text(SETS, "utf-8")
    environ = {
        "FEATURE_SETS_PATH": "sets.toml",
        "OFFLINE_DATA_PATH": "off",
        "FEATURE_WINDOWS": "",
        "FEATURE_SET_VERSION": "3",
    }
    (declared,) = declare_from(environ, tmp_path)
    paths = [getattr(view.batch_source, "path", None) for view in declared.views]
    folders = ("10s", "1m_10s", "session:30s")
    assert paths == [f"{tmp_path}/off/features/room/v3/window={folder}" for folder in folders]
    (bucket,) = declare_from({**environ, "OFFLINE_DATA_PATH": "s3://bucket/off/", "FEATURE_WINDOWS": "5s"}, tmp_path)
    assert [getattr(v.batch_source, "path", "") for v in bucket.views] == ["s3://bucket/off/features/room/v3/window=5s"]


def test_history_holds_no_value_from_the_future(project: Path) -> None:
    """A row is known from the end of its window on: a microsecond earlier the one before it is the answer."""
    write_offline(project / "data" / "offline", VIEW, [_row("a", 10, 1.0), _row("a", 20, 2.0)])
    asked = [("a", 9.999999), ("a", 10), ("a", 19.999999), ("a", 20), ("a", 86_400 * 3000)]
    assert _history(_store(project), asked) == [None, 1.0, 1.0, 2.0, 2.0]


def test_history_gives_the_newest_revision(project: Path) -> None:
    """Of the rows of one window the last correction is given, in whichever file it stands."""
    offline = project / "data" / "offline"
    write_offline(offline, VIEW, [_row("a", 10, 1.2, revision=2), _row("a", 20, 2.0)], part="b")
    write_offline(offline, VIEW, [_row("a", 10, 1.0), _row("a", 10, 1.1, revision=1)], part="c")
    assert _history(_store(project), [("a", 15), ("a", 25)]) == [1.2, 2.0]


def test_history_answers_every_row_asked(project: Path) -> None:
    """Unknown entities, times before all rows and repeated questions each get their own line."""
    write_offline(project / "data" / "offline", VIEW, [_row("a", 10, 1.0)])
    asked = [("nobody", 50), ("a", 50), ("a", 50), ("a", 0), ("nobody", 50)]
    assert _history(_store(project), asked) == [None, 1.0, 1.0, None, None]


def test_history_of_a_session_window(project: Path) -> None:
    """The colon in a session's folder is no obstacle."""
    write_offline(project / "data" / "offline", SESSION, [_row("a", 10, 1.0)])
    assert _history(_store(project), [("a", 10)], SESSION) == [1.0]


KEYS = st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 2))


ASKED = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 7)), min_size=1, max_size=6)


@settings(max_examples=8)
@given(rows=st.sets(KEYS, max_size=12), asked=ASKED)
def test_history_equals_a_plain_search(
    applied: Path, rows: set[tuple[str, int, int]], asked: list[tuple[str, int]]
) -> None:
    """Whatever rows and questions, the answer is the highest (event_time, revision) up to the moment asked."""
    offline = applied / "data" / "offline"
    given_rows = [_row(entity, second, second * 10.0 + revision, revision) for entity, second, revision in sorted(rows)]
    write_offline(offline, VIEW, [*given_rows, _row("nobody", 0, 0.0)])
    plain = [max(((t, r) for e, t, r in rows if e == entity and t <= second), default=None) for entity, second in asked]
    expected = [None if found is None else found[0] * 10.0 + found[1] for found in plain]
    assert _history(_store(applied), asked) == expected


def test_materialize_serves_the_newest_row(project: Path) -> None:
    """The first `materialize-incremental` takes rows of any age, the newest revision of the newest window."""
    write_offline(project / "data" / "offline", VIEW, [_row("a", 10, 1.0), _row("b", 10, 5.0)])
    write_offline(project / "data" / "offline", VIEW, [_row("a", 20, 2.0), _row("a", 20, 2.1, revision=1)], part="b")
    store = _store(project)
    store.materialize_incremental(_at(3600))
    assert _online(store, ["a", "b", "nobody"]) == [2.1, 5.0, None]
    write_offline(project / "data" / "offline", VIEW, [_row("a", 7200, 3.0)], part="c")
    store.materialize_incremental(_at(7300))
    assert _online(store, ["a", "b", "nobody"]) == [3.0, 5.0, None]


def test_materialize_of_a_span_serves_the_newest_row_in_it(project: Path) -> None:
    """`materialize START END` takes rows between the two, both ends included."""
    write_offline(project / "data" / "offline", VIEW, [_row("a", second, float(second)) for second in (10, 20, 30)])
    store = _store(project)
    store.materialize(_at(5), _at(20))
    assert _online(store, ["a"]) == [20.0]


def test_views_without_rows_hinder_nobody(project: Path) -> None:
    """After a run has prepared its views, materializing works though no window has closed yet."""
    store = _store(project)
    store.materialize_incremental(_at(3600))
    assert _online(store, ["a"]) == [None]
    assert _history(store, [("a", 0)]) == [None]


def test_the_adapter_goes_on_from_what_feast_materialized(project: Path, features: FeastFeatures) -> None:
    """A replay does not go behind a materialized row, and a newer row replaces it."""
    write_offline(project / "data" / "offline", VIEW, [_row("a", 10, 1.0), _row("a", 20, 2.0)])
    _store(project).materialize_incremental(_at(3600))
    for row, served in ((_row("a", 10, 1.0), (20, 2.0)), (_row("a", 30, 3.0), (30, 3.0))):
        features.write(VIEW, feature_rows(VIEW, [row]))
        (answer,) = features.read(VIEW, ["a"])
        assert answer is not None
        assert (answer.event_time_us, answer.values.get("heat__last")) == (_us(served[0]), served[1])
    assert _online(_store(project), ["a"]) == [3.0]


def test_a_push_is_served(project: Path) -> None:
    """The push source of a view takes a row as every Feast user pushes it."""
    row = {"entity_id": "a", "event_time": _at(10), "created_at": _at(10)}
    row |= {"heat__count": 1, "heat__mean": 1.0, "heat__last": 1.5}
    store = _store(project)
    store.push(f"{VIEW.name}_push", _frame([row]))
    assert _online(store, ["a"]) == [1.5]
