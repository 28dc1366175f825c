"""The offline store of our own gives the answers of Feast's DuckDB store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError
from tests.asof_stores import HEAT, OURS, Place, Row, at, frame, new_place, pairs_table, rooms_table
from tests.feature_rows import feature_repository, no_settings

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning",  # Feast's and its libraries' own
    "ignore:.*:FutureWarning",
    "ignore:On demand feature view:RuntimeWarning",
    "ignore:Saving dataset:RuntimeWarning",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Both stores and their folders, whatever is set where the tests run."""
    with no_settings():
        yield new_place(tmp_path_factory.mktemp("asof"))


def _written(moment: datetime, how: str) -> object:
    """A moment as people write it into a frame."""
    match how:
        case "naive":
            return moment.replace(tzinfo=None)
        case "text":
            return moment.isoformat()
        case "tokyo":
            return moment.astimezone(timezone(timedelta(hours=9)))
        case _:
            return moment


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", None]),
        st.integers(0, 8),
        st.none() | st.integers(0, 10),
        st.none() | st.floats(-1, 1, allow_nan=False),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[:3],
)
ASKED = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(-2, 12), st.integers(0, 2)), min_size=1, max_size=7
)


@settings(max_examples=15)
@given(
    rooms=ROWS,
    pairs=ROWS,
    asked=ASKED,
    how=st.sampled_from(["utc", "naive", "text", "tokyo"]),
    by_created=st.booleans(),
)
def test_answers_are_those_of_feast(
    place: Place,
    rooms: list[Row],
    pairs: list[Row],
    asked: list[tuple[str | None, int, int]],
    how: str,
    by_created: bool,  # noqa: FBT001  # Hypothesis draws it
) -> None:
    """Values, columns, types and nulls are those of Feast's DuckDB store, over several views, in the order asked."""
    # Two rooms at one moment would leave open which of them the view without keys means.
    taken = {row[1:3]: row for row in rooms}
    place.write(rooms_table(list(taken.values())), pairs_table(pairs))
    entity_rows = frame(
        [
            {"entity_id": e, "event_timestamp": _written(at(s), how), "floor_id": floor, "n_y": place_in}
            for place_in, (e, s, floor) in enumerate(asked)
        ]
    )
    views = [f"{view}:{name}" for view in ("short", "pair", "anywhere", "ever") for name in (HEAT, "count")]
    features = [name.replace("short:count", "short:n") for name in views]
    answers = []
    for store in (place.ours, place.feasts):
        job = store.get_historical_features(
            entity_rows.copy(), features, full_feature_names=True, filter_by_created_timestamp=by_created
        )
        assert job.metadata is not None
        answers.append((job.to_arrow(), job.metadata))
    (ours, our_metadata), (feasts, feasts_metadata) = answers
    assert ours.schema.equals(feasts.schema)
    assert ours.column("n_y").to_pylist() == list(range(len(asked)))
    assert ours.to_pylist() == feasts.sort_by("n_y").to_pylist()
    assert set(our_metadata.keys) == set(feasts_metadata.keys)
    assert our_metadata.min_event_timestamp == feasts_metadata.min_event_timestamp
    assert our_metadata.max_event_timestamp == feasts_metadata.max_event_timestamp


def _service(store: FeatureStore) -> FeatureService:
    from feast import FeatureService

    here = store.get_feature_view("ever").with_name("here")
    moved = store.get_feature_view("ever").with_name("moved").with_join_key_map({"entity_id": "neighbour"})
    service = FeatureService(name="both", features=[here, moved])
    store.apply([service])
    return service


def test_a_feature_service_with_a_view_twice(place: Place) -> None:
    """A view under a second name, joined by another column, gives what Feast's store gives."""
    place.write(rooms_table([("a", 1, 1, 1.0), ("a", 1, 2, 1.5), ("b", 2, 2, 2.0), ("a", 4, 4, 4.0)]))
    asked = frame([{"entity_id": e, "neighbour": n, "event_timestamp": at(3)} for e, n in ("ab", "ba", "cc", "ab")])
    ours, feasts = (
        store.get_historical_features(asked.copy(), _service(store), full_feature_names=True).to_arrow()
        for store in (place.ours, place.feasts)
    )
    assert ours.schema.equals(feasts.schema)
    assert [row[f"here__{HEAT}"] for row in ours.to_pylist()] == [1.5, 2.0, None, 1.5]
    assert [row[f"moved__{HEAT}"] for row in ours.to_pylist()] == [2.0, 1.5, None, 2.0]
    assert sorted(map(str, ours.to_pylist())) == sorted(map(str, feasts.to_pylist()))


def test_features_on_demand_and_a_saved_dataset(place: Place, tmp_path: Path) -> None:
    """A transformation runs on the joined rows, and the answer can be kept and read again."""
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    place.write(rooms_table([("b", 0, 0, 0.5), ("a", 1, 1, 1.0)]))
    asked = frame([{"entity_id": e, "event_timestamp": at(3), "asof_position": e} for e in "acb"])
    job = place.ours.get_historical_features(asked, ["doubled:twice", "ever:count"])
    assert job.to_df()["twice"].fillna(-1).tolist() == [2, -1, 0]
    storage = SavedDatasetFileStorage(str(tmp_path / "kept.parquet"))
    place.ours.create_saved_dataset(
        from_=place.ours.get_historical_features(asked, ["ever:count"]), name="kept", storage=storage
    )
    kept = pq.read_table(tmp_path / "kept.parquet").to_pydict()
    assert (kept["asof_position"], kept["count"]) == (["a", "c", "b"], [1, None, 0])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"entity_id": None}, "FeastEntityDFMissingColumnsError", "entity_id"),
        ({"entity_id": 7}, "ValueError", "`entity_id` of the entity rows is of type int64, and of type string"),
        ({"known_at": 7}, "ValueError", "`known_at` of the entity rows must hold timestamps, not int64"),
        ({"known_at": "yesterday"}, "ValueError", "`known_at` of the entity rows must hold timestamps: "),
        ({"known_at": datetime(1, 1, 1)}, "ValueError", "`known_at` of the entity rows must hold"),  # noqa: DTZ001
        ({"event_timestamp": 7}, "ValueError", "`event_timestamp` of the entity rows must hold timestamps, not int64"),
        ({"count": 7}, "ValueError", "`count` is asked for and a column of the entity rows too"),
    ],
    ids=["no-key", "key-of-another-type", "known-number", "known-text", "known-too-old", "time-number", "name-twice"],
)
def test_mistakes_are_named(place: Place, change: Mapping[str, object], error: str, says: str) -> None:
    """A frame that cannot be joined is refused with the column's name."""
    place.write(rooms_table([("a", 1, 1, 1.0)]))
    row = {"entity_id": "a", "event_timestamp": at(3), **change}
    asked = frame([{name: value for name, value in row.items() if value is not None}])
    with pytest.raises(Exception, match=says) as raised:
        place.ours.get_historical_features(asked, ["ever:count"])
    assert type(raised.value).__name__ == error


def test_a_known_at_may_not_be_empty(place: Place) -> None:
    """A row whose known_at is null would know nothing, in silence: it is refused."""
    asked = frame([{"entity_id": "a", "event_timestamp": at(3), "known_at": known} for known in (at(3), None)])
    with pytest.raises(ValueError, match="must hold a timestamp in every row"):
        place.ours.get_historical_features(asked, ["ever:count"])


@pytest.mark.parametrize("asked", ["SELECT 1", None], ids=["sql", "span"])
def test_what_is_not_a_frame_is_refused(place: Place, asked: str | None) -> None:
    """Like Feast's DuckDB store it takes entity rows alone, and says so."""
    with pytest.raises(TypeError, match="entity_df must be a pandas DataFrame"):
        place.ours.get_historical_features(asked, ["ever:count"], start_date=None if asked else at(0))


def test_files_that_are_not_there(place: Place) -> None:
    """A view whose folder is missing, empty or without a column of the view is named."""
    asked = frame([{"entity_id": "a", "event_timestamp": at(3)}])
    shutil.rmtree(place.rooms)
    with pytest.raises(ConfigError, match=r"`ever_files` reads `.*rooms`, which does not exist"):
        place.ours.get_historical_features(asked, ["ever:count"])
    place.rooms.mkdir()
    with pytest.raises(ConfigError, match=r"`ever_files` reads `.*rooms`, which holds no Parquet file"):
        place.ours.get_historical_features(asked, ["ever:count"])
    place.write(rooms_table([("a", 1, 1, 1.0)]).drop_columns(["count"]))
    with pytest.raises(ConfigError, match="the files of view `ever` have no `count`; it reads `ever_files`"):
        place.ours.get_historical_features(asked, ["ever:count"])


def test_the_repository_names_the_store(tmp_path: Path) -> None:
    """feature_store.yaml as shipped opens this store, and takes the options of Feast's DuckDB store."""
    from feast import FeatureStore

    repository = feature_repository(tmp_path)
    text = (repository / "feature_store.yaml").read_text("utf-8")
    staged = text.replace(f"type: {OURS}", f"type: {OURS}\n  staging_location: s3://bucket")
    (repository / "feature_store.yaml").write_text(staged, "utf-8")
    store = FeatureStore(repo_path=str(repository))
    assert type(store._get_provider().offline_store).__name__ == "AsofOfflineStore"
    assert store.config.offline_store.staging_location == "s3://bucket"
