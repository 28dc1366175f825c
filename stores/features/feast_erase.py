"""Delete one entity from Feast's online store: Feast itself has no call for it, each kind of store has its own way."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from operators.errors import ConfigError, UnavailableError
from stores.sqlite import scrubbed

if TYPE_CHECKING:  # importing Feast takes seconds
    import feast
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey


def delete_entity(store: feast.FeatureStore, key: EntityKey, beside: Sequence[str] = ()) -> int:
    """Delete the entity's row in every registered view that has its join keys; return how many rows there were.

    beside: names of values that stand in a row besides the view's features. Raises ConfigError, with what to do, for a
    store other than Feast's SQLite and Redis.
    """
    views = [view for view in store.list_feature_views() if list(view.join_keys) == list(key.join_keys)]
    kind = type(store._get_provider().online_store).__name__  # noqa: SLF001  # Feast names it nowhere else
    match kind:
        case "SqliteOnlineStore":
            return _from_sqlite(store, views, _binary(store, key))
        case "RedisOnlineStore":
            return _from_redis(store, views, key, beside)
        case _:
            tables = ", ".join(_table(store, view) for view in views) or "no table"
            raise ConfigError(
                f"Headrace cannot take an entity out of Feast's {kind}. Remove there the rows whose entity_key is"
                f" `{_binary(store, key).hex()}` (hex), of {tables}; then type this again with ONLINE_STORE=none"
            )


def _binary(store: feast.FeatureStore, key: EntityKey) -> bytes:
    from feast.infra.key_encoding_utils import serialize_entity_key

    version = store.config.entity_key_serialization_version
    return bytes(serialize_entity_key(key, entity_key_serialization_version=version))


def _table(store: feast.FeatureStore, view: Any) -> str:  # noqa: ANN401  # any of Feast's views
    from feast.infra.online_stores.helpers import compute_table_id

    return str(compute_table_id(store.project, view, store.config.registry.enable_online_feature_view_versioning))


def _from_sqlite(store: feast.FeatureStore, views: list[Any], key: bytes) -> int:
    online: Any = store._get_provider().online_store  # noqa: SLF001  # as above
    connection: sqlite3.Connection = online._get_conn(store.config)  # noqa: SLF001  # its own connection, or it would be locked out
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    gone = 0
    connection.execute("PRAGMA secure_delete = ON")
    with connection:
        for name in sorted({_table(store, view) for view in views} & tables):
            quoted = name.replace('"', '""')
            found = connection.execute(f'SELECT 1 FROM "{quoted}" WHERE entity_key = ? LIMIT 1', (key,))  # noqa: S608  # a name that Feast made
            gone += found.fetchone() is not None
            connection.execute(f'DELETE FROM "{quoted}" WHERE entity_key = ?', (key,))  # noqa: S608  # as above
    if not scrubbed(connection):
        raise UnavailableError("Feast's SQLite store is being read: what was deleted is still in its log; try again")
    return gone


def _from_redis(store: feast.FeatureStore, views: list[Any], key: EntityKey, beside: Sequence[str]) -> int:
    from feast.infra.online_stores.helpers import _mmh3, _redis_key
    from feast.infra.online_stores.redis import _versioned_fv_name

    online: Any = store._get_provider().online_store  # noqa: SLF001  # as above
    client = online._get_client(store.config.online_store)  # noqa: SLF001  # as above
    version = store.config.entity_key_serialization_version
    place = _redis_key(store.project, key, entity_key_serialization_version=version)
    gone = 0
    for view in views:
        name = _versioned_fv_name(view, store.config)
        fields = [_mmh3(f"{name}:{field}") for field in (*(f.name for f in view.features), *beside)]
        gone += bool(client.hdel(place, f"_ts:{name}"))
        client.hdel(place, *fields)
    # What is left belongs to no view any more.
    if not any(field.startswith(b"_ts:") for field in client.hkeys(place)):
        client.delete(place)
    return gone
