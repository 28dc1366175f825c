"""Online features in Feast's online store, whichever `feature_store.yaml` names.

Rows go through the provider's `online_write_batch` with protos made column by column: it is what Feast's
own `push` ends in, without its way through pandas, and without `push`'s offline write.
"""

from __future__ import annotations

import os
import shlex
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import ConfigError
from stores.features.feast_errors import translated
from stores.features.feast_repository import apply_missing
from stores.features.feast_sqlite import SqliteLane, sqlite_lane
from stores.features.newest import NewestWritten, coalesce, microseconds
from stores.features.port import OnlineRow, View

if TYPE_CHECKING:  # importing Feast takes seconds
    import feast
    from feast.infra.provider import Provider
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER_US = -1
_CHUNK_ROWS = 1_000
"""Rows of one call to Feast: bounds the protos in memory and the keys of one SQL statement."""

_LANE_ROWS = 5_000
"""Rows of one transaction of the fast lane: each waits for the disk, and readers wait for it, a quarter second."""

_TIMES = "headrace_times"
"""A value beside the view's features, [event_time, created_at] in microseconds: Feast's SQLite keeps of a
row's own timestamp whole seconds only, read in the time zone of the process."""


class FeastFeatures:
    """Serves the newest row of each entity through Feast's online store.

    Feast's stores keep one timestamp a row and treat it differently: SQLite and Postgres overwrite
    blindly, Redis drops in silence what is equal or older. So rows are written under created_at
    (= event_time + revision µs), under which a revision is newer everywhere, and what is not newer than
    the newest written is left out here: remembered for `entities_max` entities a view, else read back
    from the store, so also after a restart. `feast materialize` meanwhile does not go through here and
    overwrites as its user asks.
    """

    def __init__(self, repository: Path, *, entities_max: int = 500_000) -> None:
        """Serve from the Feast repository in this folder; nothing is read or imported before the first use."""
        self._repository = repository.absolute()
        self._lock = threading.Lock()
        self._newest = NewestWritten()
        self._entities_max = entities_max
        self._opened: tuple[feast.FeatureStore, Provider] | None = None
        self._views: dict[str, feast.FeatureView] = {}

    def prepare(self, views: Sequence[View]) -> None:
        """Register the views that the registry lacks, if it is a local file.

        Gives each view without rows a Parquet file with none, so that `feast materialize` does not fail on it.
        Raises ConfigError with the command to type if the registry is shared.
        """
        with self._locked():
            store, provider = self._open()
            apply_missing(store, provider, self._repository, views)
            self._views.clear()

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Serve each row, unless a newer one of its entity is served; some thousand rows a transaction in SQLite."""
        newest = coalesce(rows)
        done = 0
        while done < len(newest):
            with self._locked():
                done += self._write_chunk(view, newest.slice(done))

    def read(self, view: View, entity_ids: Sequence[str]) -> list[OnlineRow | None]:
        """Give the served rows."""
        found: list[OnlineRow | None] = []
        for start in range(0, len(entity_ids), _CHUNK_ROWS):
            chunk = entity_ids[start : start + _CHUNK_ROWS]
            with self._locked():
                answers = self._read_chunk(view, chunk, [*view.columns, _TIMES])
            for entity, (timestamp, values) in zip(chunk, answers, strict=True):
                times_us = _times_us(timestamp, values)
                row = None
                if times_us and values:
                    row = OnlineRow(entity, times_us[0], {c: _python(values.get(c)) for c in view.columns})
                found.append(row)
        return found

    def unlike(self, view: View, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Compare in SQLite what would be written with what is there; say so of every row in another store."""
        found = np.ones(len(rows), np.bool_)
        for start in range(0, len(rows), _LANE_ROWS):
            with self._locked():
                store, provider = self._open()
                lane = sqlite_lane(provider, store.config, self._feast_view(view))
                if lane is None:
                    return found
                some = rows.slice(start, _LANE_ROWS)
                version = store.config.entity_key_serialization_version
                keys = _serialized(some.column("entity_id").to_pylist(), version)
                found[start : start + len(some)] = lane.unlike(keys, some, view.columns, _TIMES)
        return found

    def forget(self, entity_id: str) -> int:
        """Delete the entity's rows from every view of the registry that is of entities; see `Features.forget`."""
        from stores.features.feast_erase import delete_entity

        with self._locked():
            store, _ = self._open()
            gone = delete_entity(store, _keys([entity_id])[0], beside=(_TIMES,))
            self._newest.drop(entity_id)
        return gone

    def close(self) -> None:
        """Let go of the store; its connections end with it."""
        with self._lock:
            self._opened = None
            self._views.clear()

    def _write_chunk(self, view: View, rest: pa.RecordBatch) -> int:
        """Write the first of the rows; return how many."""
        store, provider = self._open()
        feast_view, name = self._feast_view(view), view.name
        lane = sqlite_lane(provider, store.config, feast_view)
        rows = rest.slice(0, _CHUNK_ROWS if lane is None else _LANE_ROWS)
        entities = rows.column("entity_id").to_pylist()
        times_us = microseconds(rows, "created_at").tolist()
        version = store.config.entity_key_serialization_version
        keys = {} if lane is None else dict(zip(entities, _serialized(entities, version), strict=True))
        self._remember_stored(view, entities, lane, keys)
        fresh = [i for i, e in enumerate(entities) if self._newest.is_newer(name, e, times_us[i])]
        if fresh:
            chosen = rows if len(fresh) == len(rows) else rows.take(pa.array(fresh))
            if lane is None:
                provider.online_write_batch(store.config, feast_view, _protos(chosen, view.columns), None)
            else:
                lane.write([keys[entities[i]] for i in fresh], chosen, view.columns, _TIMES)
        for i in fresh:
            self._newest.remember(name, entities[i], times_us[i])
        self._newest.forget(name, self._entities_max)
        return len(rows)

    def _remember_stored(
        self, view: View, entities: Sequence[str], lane: SqliteLane | None, keys: Mapping[str, bytes]
    ) -> None:
        """Look up what is stored of the entities of which nothing is remembered. keys: of all, for the lane."""
        name = view.name
        unknown = self._newest.unknown(name, entities)
        if lane is not None and unknown:
            stored = lane.stored([keys[entity] for entity in unknown])
            for entity in unknown:
                self._newest.remember(name, entity, _NEVER_US)
            unknown = [entity for entity in unknown if keys[entity] in stored]
        if not unknown:
            return
        for entity, (timestamp, values) in zip(unknown, self._read_chunk(view, unknown, [_TIMES]), strict=True):
            times_us = _times_us(timestamp, values)
            self._newest.remember(name, entity, times_us[1] if times_us else _NEVER_US)

    def _read_chunk(
        self, view: View, entities: Sequence[str], columns: Sequence[str]
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        store, provider = self._open()
        feast_view = self._feast_view(view)
        return provider.online_read(store.config, feast_view, _keys(entities), list(columns))

    def _feast_view(self, view: View) -> feast.FeatureView:
        if view.name not in self._views:
            store, _ = self._open()
            self._views[view.name] = store.get_feature_view(view.name)
        return self._views[view.name]

    def _open(self) -> tuple[feast.FeatureStore, Provider]:
        if self._opened is None:
            if not (self._repository / "feature_store.yaml").is_file():
                raise ConfigError(
                    f"FEAST_REPO_PATH `{self._repository}` holds no feature_store.yaml; name the folder that does"
                )
            self._opened = _open_store(self._repository)
        return self._opened

    @contextmanager
    def _locked(self) -> Iterator[None]:
        command = f"feast -c {shlex.quote(str(self._repository))} apply"
        with self._lock, translated(command):
            yield


def _open_store(repository: Path) -> tuple[feast.FeatureStore, Provider]:
    _import_feast()
    import yaml  # comes with Feast
    from feast import FeatureStore
    from feast.errors import FeastError
    from feast.infra.provider import get_provider
    from feast.repo_config import FeastConfigError

    where = f"`{repository / 'feature_store.yaml'}`"
    try:
        store = FeatureStore(repo_path=str(repository))
        return store, get_provider(store.config)
    except FeastError as error:
        raise ConfigError(f"{where} asks for something that Feast lacks here: {error}") from error
    except (FeastConfigError, yaml.YAMLError, ValueError) as error:
        # Their texts quote the file, which may hold a password.
        raise ConfigError(
            f"{where} is not what Feast expects ({type(error).__name__}); compare its documentation"
        ) from error


def _import_feast() -> None:
    """Import Feast without what it does to the rest of the process at import.

    It sets two variables that make `prometheus_client`, if it is imported later, here or in a child
    process, keep its values in files of a temporary folder, and it shows every DeprecationWarning.
    """
    import prometheus_client

    del prometheus_client
    before = dict(os.environ)
    with warnings.catch_warnings():
        import feast

        del feast
    for name in ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR"):
        if name not in before:
            os.environ.pop(name, None)


def _keys(entities: Sequence[str]) -> list[EntityKey]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return [EntityKey(join_keys=["entity_id"], entity_values=[Value(string_val=entity)]) for entity in entities]


def _protos(
    rows: pa.RecordBatch, columns: Sequence[str]
) -> list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]]:
    """Rows as Feast's stores take them: key, values, timestamp, and no created time, which none gives back."""
    from feast.protos.feast.types.Value_pb2 import Value

    null = Value()
    makers: dict[pa.DataType, Callable[[Any], Value]] = {
        pa.int64(): lambda value: Value(int64_val=value),
        pa.float64(): lambda value: Value(double_val=value),
    }
    protos = []
    for column in columns:
        array = rows.column(column)
        make = makers[array.type]
        protos.append([null if value is None else make(value) for value in array.to_pylist()])
    keys = _keys(rows.column("entity_id").to_pylist())
    protos.append(_times(rows))
    names = [*columns, _TIMES]
    return [
        (key, dict(zip(names, values, strict=True)), timestamp, None)
        for key, timestamp, values in zip(keys, _timestamps(rows), zip(*protos, strict=True), strict=True)
    ]


def _timestamps(rows: pa.RecordBatch) -> list[datetime]:
    return [_EPOCH + timedelta(microseconds=time_us) for time_us in microseconds(rows, "created_at").tolist()]


def _times(rows: pa.RecordBatch) -> list[Value]:
    from feast.protos.feast.types.Value_pb2 import Int64List, Value

    times_us = (microseconds(rows, name).tolist() for name in ("event_time", "created_at"))
    return [Value(int64_list_val=Int64List(val=pair)) for pair in zip(*times_us, strict=True)]


def _serialized(entities: Sequence[str], version: int) -> list[bytes]:
    """Feast's serialized keys; where they are one prefix, the length and the entity, without Feast's 7 µs a key."""
    prefix = _feast_serialized(["x"], version)[0][:-5]
    probes = ["", "é" * 200]
    for entity, key in zip(probes, _feast_serialized(probes, version), strict=True):
        if key != _with_length(prefix, entity):
            return _feast_serialized(entities, version)
    return [_with_length(prefix, entity) for entity in entities]


def _with_length(prefix: bytes, entity: str) -> bytes:
    text = entity.encode()
    return prefix + len(text).to_bytes(4, "little") + text


def _feast_serialized(entities: Sequence[str], version: int) -> list[bytes]:
    from feast.infra.key_encoding_utils import serialize_entity_key

    return [serialize_entity_key(key, entity_key_serialization_version=version) for key in _keys(entities)]


def _python(value: Value | None) -> float | int | None:
    kind = None if value is None else value.WhichOneof("val")
    return None if kind is None else getattr(value, kind)


def _times_us(timestamp: datetime | None, values: dict[str, Value] | None) -> tuple[int, int] | None:
    """(event_time, created_at) of a stored row in microseconds, or None if there is no row.

    For an entity that it does not know, Feast's Redis store answers with the epoch and values without
    content; no window ends at the epoch.
    """
    if timestamp is None or values is None:
        return None
    if timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=UTC)
    stored_us = (timestamp - _EPOCH) // timedelta(microseconds=1)
    times_us = list(values[_TIMES].int64_list_val.val) if _TIMES in values else []
    # `feast materialize` may have written a newer row and has left the times of the older one.
    if not times_us or stored_us > times_us[-1]:
        return (stored_us, stored_us) if stored_us > 0 else None
    return times_us[0], times_us[-1]
