"""Bring a Feast registry up to what the flow is going to write, where that is safe to do unasked."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from operators.errors import ConfigError
from operators.records import feature_row_schema
from stores.features.port import View

if TYPE_CHECKING:  # importing Feast takes seconds
    import feast
    from feast.infra.provider import Provider

_DECLARATIONS = "views.py"


def apply_missing(store: feast.FeatureStore, provider: Provider, repository: Path, views: Sequence[View]) -> None:
    """Register those of `views` that the registry lacks or holds with other columns or another path.

    Only a registry in a local file is changed, under a file lock, and nothing in it is ever removed:
    a full `feast apply` would drop the online rows of another version that is still served. Gives each
    view without rows a Parquet file with none.
    Raises ConfigError, with the command to type, if the registry is shared, and if `views.py` of the
    repository does not declare a view.
    """
    command = f"feast -c {shlex.quote(str(repository))} apply"
    registry = _local_registry(store, repository)
    if registry is None:
        missing = _missing(views, _registered(store))
        if missing:
            raise ConfigError(f"Feast's registry lacks the view {_named(missing)}; type: {command}")
        return
    declared = _declared(repository, command)
    declared_views = _views(declared)
    missing = _missing(views, declared_views)
    if missing:
        raise ConfigError(
            f"`{repository / _DECLARATIONS}` does not declare the view {_named(missing)} with the columns of the flow;"
            " both read FEATURE_SETS_PATH, FEATURE_WINDOWS and FEATURE_SET_VERSION: set them alike"
        )
    with _file_lock(registry.with_name(f"{registry.name}.lock")):
        registered = _registered(store)
        wanted = [declared_views[view.name] for view in views]
        stale = [view for view in wanted if _differs(view, registered.get(view.name))]
        if stale:
            _apply(store, stale, declared)
        # The tables may be gone though the registry is there: somebody has removed the online store's file.
        provider.update_infra(store.project, [], wanted, [], [], partial=True)
    for view in views:
        _make_readable(view, _offline_path(store, view))


def _offline_path(store: feast.FeatureStore, view: View) -> str:
    """Folder or URL from which Feast reads the view's offline rows."""
    source = store.get_feature_view(view.name).batch_source
    return str(getattr(source, "path", "")) if source is not None else ""


def _apply(store: feast.FeatureStore, stale: list[feast.FeatureView], declared: list[object]) -> None:
    import feast

    names = {view.name for view in stale}
    entities = [thing for thing in declared if isinstance(thing, feast.Entity)]
    services = [
        thing
        for thing in declared
        if isinstance(thing, feast.FeatureService) and names & {p.name for p in thing.feature_view_projections}
    ]
    store.apply([feast.Project(name=store.project), *entities, *stale, *services])


def _local_registry(store: feast.FeatureStore, repository: Path) -> Path | None:
    config = store.config.registry
    if config.registry_type != "file" or "://" in config.path:
        return None
    return repository / str(config.path)


def _registered(store: feast.FeatureStore) -> dict[str, feast.FeatureView]:
    store.refresh_registry()  # type: ignore[no-untyped-call]  # Feast leaves it without annotations
    return {view.name: view for view in store.list_feature_views()}


def _missing(views: Sequence[View], known: dict[str, feast.FeatureView]) -> list[View]:
    """The views that are not known with at least the columns they are written with."""
    return [
        view
        for view in views
        if view.name not in known or not {f.name for f in known[view.name].features}.issuperset(view.columns)
    ]


def _differs(declared: feast.FeatureView, registered: feast.FeatureView | None) -> bool:
    if registered is None:
        return True
    paths = [getattr(view.batch_source, "path", None) for view in (declared, registered)]
    fields = [{(field.name, field.dtype) for field in view.features} for view in (declared, registered)]
    return paths[0] != paths[1] or fields[0] != fields[1]


def _declared(repository: Path, command: str) -> list[object]:
    """What stands at module level in the repository's `views.py`, run under this process's environment."""
    path = repository / _DECLARATIONS
    if not path.is_file():
        raise ConfigError(f"`{path}` does not exist, so the views cannot be declared unasked; type: {command}")
    spec = importlib.util.spec_from_file_location("headrace_feature_views", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"`{path}` cannot be run: {type(error).__name__}: {error}") from error
    finally:
        del sys.modules[spec.name]
    return list(vars(module).values())


def _views(declared: Sequence[object]) -> dict[str, feast.FeatureView]:
    import feast

    return {thing.name: thing for thing in declared if isinstance(thing, feast.FeatureView)}


def _make_readable(view: View, folder: str) -> None:
    """Put a Parquet file without rows where there is none yet: for DuckDB an empty folder is an error.

    DuckDB reads it like any other; by its underscore the readers of rows pass it over.
    """
    path = Path(folder)
    if not folder or "://" in folder or next(path.glob("**/*.parquet"), None) is not None:
        return
    target = path / "date=1970-01-01" / "_schema.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{os.getpid()}.unfinished")
    pq.write_table(feature_row_schema(view.feature_set).empty_table(), unfinished)
    unfinished.rename(target)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Hold the lock against other processes; Feast rewrites its registry file without one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _named(views: Sequence[View]) -> str:
    more = f" (and {len(views) - 1} more)" if len(views) > 1 else ""
    return f"`{views[0].name}`{more}"
