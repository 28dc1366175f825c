"""Vectors in usearch indexes on a local disk, a folder for each space and in it one for each shard.

`shard_folder` says which files there are, `shard_log` what a commit is, `graph` what usearch does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError, CorruptStoreError, HeadraceError
from stores.offline.disk import fsync, locked, make_folders, names_in
from stores.vectors.compaction import Compaction, check_logs
from stores.vectors.graph import load_index
from stores.vectors.port import Element, Hit, best, checked_keys, checked_query, scores_of
from stores.vectors.shard_folder import ShardFolder, translated
from stores.vectors.shard_log import LogFormat
from stores.vectors.shard_view import ShardView
from stores.vectors.shard_writer import UsearchVectorWriter

_FORMAT = 1
_SPACE = "space.json"
_DROPPED = "%dropped"
"""Follows the name of a space that is being removed; `quote` leaves no such percent sign."""


class UsearchVectorStore:
    """`VectorStore` in `<root>/<space>`. Nothing is created before the first writer is."""

    def __init__(
        self, root: Path, space: str, dim: int, *, shards: int, element: Element, compaction: Compaction
    ) -> None:
        """Open the space. Raises ConfigError if it was made with another dim, element or number of shards."""
        self.space = space
        self.dim = dim
        self.shards = shards
        self._path = root / quote(space, safe="")
        self._format = LogFormat(dim, element)
        self._compaction = compaction
        self._turn = Lock()
        self._made = self._check_made()

    def write(self, shard: int) -> UsearchVectorWriter:
        """Become the writer of a shard; a process that dies lets go of it."""
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} is not one of {self.shards}")
        self._make()
        return UsearchVectorWriter(self._folder(shard), self._format, self._compaction, self._turn)

    def read(self) -> UsearchVectorReader:
        """Look at all shards. Needs no right to write."""
        return UsearchVectorReader([self._folder(shard) for shard in range(self.shards)], self._format)

    def check(self) -> list[str]:
        """Read every file and return a sentence for each damage."""
        return [damage for shard in range(self.shards) for damage in _damages(self._folder(shard), self._format)]

    def _folder(self, shard: int) -> ShardFolder:
        return ShardFolder(self._path / f"shard-{shard:03}")

    def _facts(self) -> dict[str, object]:
        return {
            "format": _FORMAT,
            "space": self.space,
            "dim": self.dim,
            "element": self._format.element,
            "shards": self.shards,
        }

    def _check_made(self) -> bool:
        path = self._path / _SPACE
        with translated(f"reading `{path}`"):
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                return False
        try:
            found = dict(json.loads(raw))
        except (ValueError, TypeError) as exc:
            raise CorruptStoreError(f"`{path}` is not readable ({exc}); restore the store or remove it") from exc
        for name, value in self._facts().items():
            if found.get(name) != value:
                raise ConfigError(
                    f"the vectors in `{self._path}` were made with {name} `{found.get(name)}`, the settings say"
                    f" `{value}`; set it back, or remove the folder and run"
                    " `headrace verify documents --repair`"
                )
        return True

    def _make(self) -> None:
        if self._made:
            return
        with translated(f"making `{self._path}`"):
            for parent in sorted(make_folders(self._path)):
                fsync(parent)
            with locked(self._path / "lock"):
                if not self._check_made():
                    fresh = self._path / f"{_SPACE}.new"
                    fresh.write_text(json.dumps(self._facts()), encoding="utf-8")
                    fsync(fresh)
                    fresh.replace(self._path / _SPACE)
                    fsync(self._path)
        self._made = True


class UsearchVectorReader:
    """`VectorReader` over the shards of one space."""

    def __init__(self, folders: list[ShardFolder], log_format: LogFormat) -> None:
        """Look at the newest commit of each shard."""
        self._format = log_format
        self._lock = Lock()
        self._views: list[ShardView] | None = []
        with ExitStack() as opened:
            for folder in folders:
                view = ShardView(folder, log_format)
                opened.callback(view.close)
                self._views.append(view)
            opened.pop_all()

    def refresh(self) -> None:
        """Move on to the newest commit of each shard."""
        with self._lock:
            for view in self._open():
                view.refresh()

    def get(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return vectors and which were found."""
        keys = checked_keys(keys)
        vectors = np.zeros((keys.size, self._format.dim), np.float32)
        found = np.zeros(keys.size, np.bool_)
        with self._lock:
            for view in self._open():
                view.get(keys, vectors, found)
        return vectors, found

    def search(
        self, query: NDArray[np.float32], limit: int, *, exact: bool = False, among: NDArray[np.uint64] | None = None
    ) -> list[Hit]:
        """Return the nearest vectors, `limit` of each shard and of these the best."""
        unit = checked_query(query, limit, self._format.dim)
        if among is not None:
            wanted = np.unique(checked_keys(among))
            vectors, found = self.get(wanted)
            keys, scores = wanted[found], scores_of(unit, vectors[found])
        else:
            with self._lock:
                parts = [view.nearest(unit, limit, exact=exact) for view in self._open()]
            keys = np.concatenate([part[0] for part in parts])
            scores = np.concatenate([part[1] for part in parts])
        return [Hit(int(keys[place]), float(scores[place])) for place in best(keys, scores, limit)]

    def keys(self) -> NDArray[np.uint64]:
        """Return all keys, rising."""
        with self._lock:
            return np.sort(np.concatenate([view.keys() for view in self._open()]))

    def count(self) -> int:
        """Return how many vectors there are."""
        with self._lock:
            return sum(view.count() for view in self._open())

    def close(self) -> None:
        """Let go of files and memory."""
        with self._lock:
            for view in self._views or []:
                view.close()
            self._views = None

    def _open(self) -> list[ShardView]:
        if self._views is None:
            raise ValueError("the reader is closed")
        return self._views


def spaces_in(root: Path) -> list[str]:
    """Names of the spaces there, sorted."""
    with translated(f"listing `{root}`"):
        names = names_in(root) if root.exists() else []
        return sorted(unquote(name) for name in names if (root / name / _SPACE).exists() and _DROPPED not in name)


def facts_of(root: Path, space: str) -> dict[str, Any]:
    """How the space was made. Raises ConfigError if it is not there, CorruptStoreError if that cannot be read."""
    path = root / quote(space, safe="") / _SPACE
    with translated(f"reading `{path}`"):
        if not path.exists():
            raise ConfigError(f"there are no vectors of `{space}` in `{root}`")
        try:
            return dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as exc:
            raise CorruptStoreError(f"`{path}` is not readable ({exc}); restore the store or remove it") from exc


def drop_space(root: Path, space: str) -> None:
    """Remove a space and its vectors; one that is not there is fine. Raises ConfigError while it has a writer."""
    path = root / quote(space, safe="")
    with translated(f"removing `{path}`"), ExitStack() as held:
        for name in names_in(root) if root.exists() else []:
            if name.startswith(path.name + _DROPPED):
                shutil.rmtree(root / name)
        if not (path / _SPACE).exists():
            return
        for name in names_in(path):
            if name.startswith("shard-"):
                held.enter_context(ShardFolder(path / name).lock())
        gone = path.with_name(f"{path.name}{_DROPPED}-{os.getpid()}")
        path.rename(gone)  # all at once for readers, whatever happens to the removal
        shutil.rmtree(gone)


def _damages(folder: ShardFolder, log_format: LogFormat) -> list[str]:
    """What is wrong with a shard; a compaction that removes files meanwhile is met by looking again."""
    manifest, damages = None, [""]
    while damages:
        before = manifest
        try:
            manifest = folder.manifest()
        except HeadraceError as exc:
            return [str(exc)]
        if manifest is None or manifest == before:
            break
        checks: list[Callable[[], object]] = [partial(check_logs, folder, manifest.logs, log_format)]
        if manifest.base is not None:
            checks.append(partial(load_index, folder.path / manifest.base.name, manifest.base, log_format))
        damages = [damage for check in checks if (damage := _complaint(folder, check))]
    return [] if manifest is None else damages


def _complaint(folder: ShardFolder, check: Callable[[], object]) -> str:
    try:
        check()
    except (HeadraceError, RuntimeError, OSError) as exc:
        return f"`{folder.path}`: {exc}"
    return ""
