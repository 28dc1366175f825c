"""What revisions add to the point-in-time join: rows as they are known now, and as they were known then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.asof_stores import HEAT, Place, Revision, at, frame, new_place, revisions_table, rooms_table
from tests.feature_rows import no_settings

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning",  # Feast's and its libraries' own
    "ignore:.*:FutureWarning",
    "ignore:On demand feature view:RuntimeWarning",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Both stores and their folders, whatever is set where the tests run."""
    with no_settings():
        yield new_place(tmp_path_factory.mktemp("asof"))


def _plain_search(rows: Sequence[Revision], entity: str, second: int, known_at: int | None) -> float | None:
    """Of each row the newest revision that is known, of these the newest that is not retracted."""
    newest: dict[int, Revision] = {}
    for row in sorted(rows, key=lambda row: row.number):
        if row.entity == entity and row.event_time <= second and (known_at is None or row.known_at <= known_at):
            newest[row.event_time] = row
    there = [row for row in newest.values() if not row.retracted]
    return max(there, key=lambda row: row.event_time).value if there else None


@st.composite
def _histories(draw: st.DrawFn) -> list[Revision]:
    """Rows of two entities; each comes when its window ends or later, and may be corrected and retracted."""
    rows: list[Revision] = []
    for entity, second in draw(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=9, unique=True)):
        known_at = second
        for number, delay in enumerate(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))):
            known_at += delay
            retracted = number > 0 and draw(st.booleans())
            rows.append(Revision(entity, second, number, known_at, len(rows) + 1.0, retracted))
    return draw(st.permutations(rows))


def _heat(place: Place, asked: Sequence[Mapping[str, object]]) -> list[float | None]:
    answer = place.ours.get_historical_features(frame(asked), [f"ever:{HEAT}"]).to_arrow()
    assert answer.column_names == [*asked[0], HEAT]
    for column in asked[0]:
        assert answer.column(column).to_pylist() == [row[column] for row in asked]
    values: list[float | None] = answer.column(HEAT).to_pylist()
    return values


LATE = Revision("a", 2, 0, 6, 2.0)  # a row that came into being by a correction


@settings(max_examples=40)
@given(
    rows=_histories(),
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 9), st.integers(-1, 14)), min_size=1, max_size=6),
    how=st.sampled_from(["now", "own", "then", "date"]),
)
@example(rows=[Revision("a", 1, 0, 1, 1.0), LATE], asked=[("a", 5, 5), ("a", 5, 6)], how="own")
def test_what_was_known_equals_a_plain_search(
    place: Place, rows: list[Revision], asked: list[tuple[str, int, int]], how: str
) -> None:
    """As known now, at each row's own time, at the moment asked and on one date: always the newest revision known."""
    place.write(revisions_table(rows))
    questions: list[dict[str, object]] = []
    expected = []
    for entity, second, own in asked:
        known_at = {"now": None, "own": own, "then": second, "date": asked[0][2]}[how]
        expected.append(_plain_search(rows, entity, second, known_at))
        question = {"entity_id": entity, "event_timestamp": at(second)}
        questions.append(question if known_at is None else {**question, "known_at": at(known_at)})
    assert _heat(place, questions) == expected


def test_both_clocks_at_once(place: Place) -> None:
    """`filter_by_created_timestamp` and `known_at` together show what both of them let through."""
    rows = [Revision("a", 1, 0, 1, 1.0), Revision("a", 4, 0, 4, 4.0), Revision("a", 4, 1, 7, 4.5)]
    place.write(revisions_table(rows))
    asked = frame(
        [
            {"entity_id": "a", "event_timestamp": at(second), "known_at": at(known)}
            for second, known in ((3, 3), (4, 4), (4, 9), (5, 5), (5, 9), (5, 0))
        ]
    )
    job = place.ours.get_historical_features(asked, [f"ever:{HEAT}"], filter_by_created_timestamp=True)
    # created_at of revision 1 is a microsecond after 4.
    assert job.to_arrow().column(HEAT).to_pylist() == [1.0, 4.0, 4.0, 4.0, 4.5, None]


def test_files_from_before_revisions_had_times(place: Place) -> None:
    """Files without the four columns, alone and beside files with them, hold rows known at their event_time."""
    place.write(rooms_table([("a", 1, 1, 1.0), ("a", 3, 3, 3.0)]))
    asked = [{"entity_id": "a", "event_timestamp": at(5), "known_at": at(second)} for second in (0, 1, 2, 3, 9)]
    assert _heat(place, asked) == [None, 1.0, 1.0, 3.0, 3.0]
    place.write(revisions_table([Revision("a", 3, 1, 8, 0.0, retracted=True)]), part="younger")
    assert _heat(place, asked) == [None, 1.0, 1.0, 3.0, 1.0]


def test_only_what_is_current_is_materialized(place: Place) -> None:
    """A correction replaces, a retracted row is not served but the one before it, and a dead entity not at all."""
    gone = [Revision("c", 1, 0, 1, 7.0), Revision("c", 1, 1, 5, 0.0, retracted=True)]
    moved = [Revision("a", 1, 0, 1, 1.0), Revision("a", 3, 0, 3, 3.0), Revision("a", 3, 1, 9, 0.0, retracted=True)]
    mended = [Revision("b", 2, 1, 6, 2.5), Revision("b", 2, 0, 2, 2.0)]
    place.write(revisions_table([*gone, *moved, *mended]))
    place.ours.materialize(at(0), at(10), feature_views=["ever"])
    rows = [{"entity_id": entity} for entity in "abc"]
    served = place.ours.get_online_features([f"ever:{HEAT}"], rows).to_dict()
    assert served[HEAT] == [1.0, 2.5, None]
    source = place.ours.get_feature_view("ever").batch_source
    assert source is not None
    pulled = place.ours._get_provider().offline_store.pull_all_from_table_or_query(
        place.ours.config, source, ["entity_id"], [HEAT], "event_time", "created_at", at(0), at(2)
    )
    assert sorted(pulled.to_arrow().column(HEAT).to_pylist()) == [1.0, 2.5]
