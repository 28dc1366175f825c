"""Feast's offline store for the project's Parquet: DuckDB, joined by an ASOF join, reading revisions in two times.

`feature_store.yaml` names the class by its path. It reads each row as it is known now: the newest revision
of each (entity, event_time), and none where that is retracted. If the entity rows have a column `known_at`,
each sees only the revisions with known_at <= its own: set it to event_timestamp for what was known at that
moment, to a date for what was known on that date. Files without these columns hold rows that were known
at their event_time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
from feast import FeatureView, FileSource, OnDemandFeatureView
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import FeastEntityDFMissingColumnsError
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _read_data_source,
    _write_data_source,
)
from feast.infra.offline_stores.ibis import (
    IbisRetrievalJob,
    pull_all_from_table_or_query_ibis,
    pull_latest_from_table_or_query_ibis,
)
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from ibis.common.exceptions import IbisTypeError

from operators.errors import ConfigError
from stores.features.asof_join import UTC_TIMESTAMP, EntityRows, History, current, point_in_time

KNOWN_AT = "known_at"


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """What may stand below `offline_store` in feature_store.yaml: what Feast's DuckDB store takes."""

    type: str = "stores.features.asof.AsofOfflineStore"


class AsofOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store with a point-in-time join that is fast and knows revisions; all else is inherited."""

    @staticmethod
    def get_historical_features(  # noqa: PLR0913, PLR0917  # Feast's signature
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,  # noqa: FBT001, FBT002
        filter_by_created_timestamp: bool = False,  # noqa: FBT001, FBT002
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Join to each entity row the newest row of each view up to its event timestamp, not older than the view's ttl.

        Every entity row is answered, in the order given, with nulls where there is nothing. A column
        `known_at` of the entity rows hides what became known later, and is passed through.
        Raises TypeError for entity rows that are not a pandas DataFrame, ValueError for columns of the wrong
        kind or name, FeastEntityDFMissingColumnsError if a join key is missing, ConfigError if a view's files are.
        """
        if not isinstance(entity_df, pd.DataFrame):
            what = f"a span from {start_date} to {end_date}" if entity_df is None else "SQL"
            raise TypeError(f"entity_df must be a pandas DataFrame; this offline store does not answer {what}")
        if any(not isinstance(view.batch_source, FileSource) for view in feature_views):
            return _inherited(
                config=config,
                feature_views=feature_views,
                feature_refs=feature_refs,
                entity_df=entity_df,
                registry=registry,
                project=project,
                full_feature_names=full_feature_names,
                filter_by_created_timestamp=filter_by_created_timestamp,
            )
        time, frame = _event_times(entity_df)
        asked = _entity_rows(frame, time)
        histories = [_history(config, view, feature_refs, full_names=full_feature_names) for view in feature_views]
        _check(asked, histories, time)
        answer = point_in_time(asked, histories, by_created=filter_by_created_timestamp)
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        for view in on_demand:
            if view.mode == "substrait":
                answer = view.transform_ibis(answer, full_feature_names)
        return IbisRetrievalJob(
            answer,
            [view for view in on_demand if view.mode != "substrait"],
            full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[column for column in frame.columns if column != time],
                min_event_timestamp=asked.earliest,
                max_event_timestamp=asked.latest,
            ),
            data_source_writer=_write_data_source,
            staging_location=config.offline_store.staging_location,
            staging_location_endpoint_override=config.offline_store.staging_location_endpoint_override,
            repo_path=str(config.repo_path),
        )

    @staticmethod
    def pull_latest_from_table_or_query(  # noqa: PLR0913, PLR0917  # Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Give of each entity the newest row from start_date to end_date, both included, as it is known now."""
        return pull_latest_from_table_or_query_ibis(
            data_source_reader=partial(
                _read_current, join_key_columns, timestamp_field, created_timestamp_column, (start_date, end_date)
            ),
            data_source_writer=_write_data_source,
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            staging_location=config.offline_store.staging_location,
            staging_location_endpoint_override=config.offline_store.staging_location_endpoint_override,
        )

    @staticmethod
    def pull_all_from_table_or_query(  # noqa: PLR0913, PLR0917  # Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Give all rows from start_date to end_date, both included, as they are known now."""
        return pull_all_from_table_or_query_ibis(
            data_source_reader=partial(
                _read_current, join_key_columns, timestamp_field, created_timestamp_column, (start_date, end_date)
            ),
            data_source_writer=_write_data_source,
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            staging_location=config.offline_store.staging_location,
            staging_location_endpoint_override=config.offline_store.staging_location_endpoint_override,
        )


def _inherited(*, feature_views: list[FeatureView], entity_df: pd.DataFrame, **rest: Any) -> RetrievalJob:  # noqa: ANN401
    """Feast's own join, for views that read something else than files."""
    if KNOWN_AT in entity_df.columns:
        names = ", ".join(f"`{v.name}`" for v in feature_views if not isinstance(v.batch_source, FileSource))
        raise ValueError(f"`{KNOWN_AT}` of the entity rows asks for revisions, and {names} reads no files; ask without")
    return DuckDBOfflineStore.get_historical_features(feature_views=feature_views, entity_df=entity_df, **rest)


def _read(source: DataSource, repo_path: str) -> ibis.Table:
    """The rows of a source; of local Parquet with the columns of all its files, null where a file has none."""
    if not isinstance(source, FileSource) or "://" in source.path:
        return _read_data_source(source, repo_path)
    path = Path(source.path)
    if not path.exists():
        path = Path(FileSource.get_uri_for_file_path(repo_path, source.path))
    if not path.exists():
        raise ConfigError(f"`{source.name}` reads `{source.path}`, which does not exist; run the flow that writes it")
    plain = source.file_format is None and (path.is_dir() or path.suffix == ".parquet")
    if not plain and not isinstance(source.file_format, ParquetFormat):
        return _read_data_source(source, repo_path)
    if path.is_dir() and next(path.rglob("*.parquet"), None) is None:
        raise ConfigError(f"`{source.name}` reads `{path}`, which holds no Parquet file; run the flow that writes it")
    return ibis.read_parquet(path, union_by_name=True)


def _read_current(
    keys: Sequence[str],
    event_time: str,
    created_at: str | None,
    span: tuple[datetime | None, datetime | None],
    source: DataSource,
    repo_path: str,
) -> ibis.Table:
    """The rows of a source within the span, as they are known now; without keys, which a log has not, all of them."""
    rows = _read(source, repo_path)
    if not keys:
        return rows
    start, end = (None if moment is None else moment.astimezone(UTC) for moment in span)
    time = rows[event_time].cast(UTC_TIMESTAMP)
    if start is not None:
        rows = rows.filter(time >= start)
    if end is not None:
        rows = rows.filter(time <= end)
    return current(rows, keys, event_time, created_at)


def _history(config: RepoConfig, view: FeatureView, feature_refs: Sequence[str], *, full_names: bool) -> History:
    source = view.batch_source
    assert source is not None, "asked of files alone"
    rows = _read(source, str(config.repo_path))
    for old, new in source.field_mapping.items():
        if old in rows.columns:
            rows = rows.rename({new: old})
    view_name = view.projection.name_to_use()  # type: ignore[no-untyped-call]  # Feast leaves it without annotations
    refs = [ref.partition(":") for ref in feature_refs]
    wanted = dict.fromkeys(feature for name, _, feature in refs if name == view_name)
    column_prefix = f"{view.projection.name_alias or view.name}__" if full_names else ""
    keys = dict(view.projection.join_key_map) or {column.name: column.name for column in view.entity_columns}
    needed = [*keys, *wanted, source.timestamp_field, source.created_timestamp_column]
    missing = [f"`{column}`" for column in needed if column and column not in rows.columns]
    if missing:
        raise ConfigError(f"the files of view `{view.name}` have no {', '.join(missing)}; it reads `{source.name}`")
    return History(
        rows=rows,
        keys=keys,
        event_time=source.timestamp_field,
        created_at=source.created_timestamp_column or None,
        values={feature: f"{column_prefix}{feature}" for feature in wanted},
        ttl=view.ttl,
    )


def _event_times(entity_df: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Name of the column of event timestamps, and the frame with times in it where there were texts."""
    kinds = {column: kind for column, kind in entity_df.dtypes.items() if column != KNOWN_AT}
    time = infer_event_timestamp_from_entity_df(kinds)
    frame = entity_df.copy(deep=False)
    if not pd.api.types.is_datetime64_any_dtype(frame[time]):
        frame[time] = _times(frame, time)
    for column in {time, KNOWN_AT}.intersection(frame.columns):
        if pd.api.types.is_datetime64_any_dtype(frame[column]):
            frame[column] = frame[column].dt.as_unit("us")  # of finer times DuckDB takes none
    return time, frame


def _times(frame: pd.DataFrame, column: str) -> pd.Series:
    """The column as timestamps in UTC; times without a zone are in UTC."""
    values = frame[column].infer_objects()
    types = pd.api.types
    if not (types.is_datetime64_any_dtype(values) or types.is_object_dtype(values) or types.is_string_dtype(values)):
        raise ValueError(f"`{column}` of the entity rows must hold timestamps, not {values.dtype}")
    try:
        return pd.to_datetime(values, utc=True).dt.as_unit("us")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{column}` of the entity rows must hold timestamps: {error}") from error


def _check(asked: EntityRows, histories: Sequence[History], time: str) -> None:
    expected = {column for history in histories for column in history.keys.values()}
    missing = expected.difference(asked.columns)
    if missing:
        needed = sorted(expected | {time})
        raise FeastEntityDFMissingColumnsError(needed, sorted(missing))  # type: ignore[no-untyped-call]  # as above
    for history in histories:
        for key, column in history.keys.items():
            ours, theirs = asked.table[column], history.rows[key]
            try:
                eq(ours, theirs)
            except IbisTypeError as error:
                message = (
                    f"`{column}` of the entity rows is of type {ours.type()}, and of type {theirs.type()} in the files"
                )
                raise ValueError(message) from error
        for name in set(history.values.values()).intersection(asked.columns):
            raise ValueError(f"`{name}` is asked for and a column of the entity rows too; ask for full_feature_names")


def _entity_rows(frame: pd.DataFrame, time: str) -> EntityRows:
    prefix = "asof_"
    while any(str(column).startswith(prefix) for column in frame.columns):
        prefix = f"_{prefix}"
    asked_at = _times(frame, time)
    inner = {f"{prefix}position": np.arange(len(frame)), f"{prefix}asked_at": asked_at}
    known_latest, known_by_row = None, False
    if KNOWN_AT in frame.columns:
        known_by = _times(frame, KNOWN_AT)
        if known_by.isna().any():
            raise ValueError(f"`{KNOWN_AT}` of the entity rows must hold a timestamp in every row, or be left out")
        inner[f"{prefix}known_by"] = known_by
        known_latest, known_by_row = _python(known_by.max()), known_by.nunique() > 1
    return EntityRows(
        table=ibis.memtable(frame.assign(**inner)),
        columns=list(frame.columns),
        prefix=prefix,
        earliest=_python(asked_at.min()),
        latest=_python(asked_at.max()),
        known_latest=known_latest,
        known_by_row=known_by_row,
    )


def _python(moment: pd.Timestamp) -> datetime | None:
    return None if pd.isna(moment) else moment.to_pydatetime()
