"""One shard as a reader sees it: the mapped base, and the commits that the logs hold on top of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from operators.errors import CorruptStoreError, RetryableError
from stores.vectors.graph import Graph
from stores.vectors.overlay import Overlay
from stores.vectors.shard_folder import Manifest, ShardFolder, sequence_of, translated
from stores.vectors.shard_log import LogFormat, LogReader

_ATTEMPTS = 50


class ShardView:
    """A shard at one of its commits. Not for several threads at once."""

    def __init__(self, folder: ShardFolder, log_format: LogFormat) -> None:
        """Look at the newest commit."""
        self._folder = folder
        self._format = log_format
        self._manifest: Manifest | None = None
        self._graph: Graph | None = None
        self._overlay = Overlay(log_format.dim)
        self._log: LogReader | None = None
        self._hidden = 0
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        """Move on to the newest commit."""
        manifest = None
        for _ in range(_ATTEMPTS):
            with translated(f"reading `{self._folder.path}`"):
                before, manifest = manifest, self._folder.manifest()
                try:
                    self._refresh(manifest)
                except FileNotFoundError as exc:
                    # A compaction has removed what the manifest named, so there is a newer one: else it is a loss.
                    if manifest == before:
                        raise CorruptStoreError(
                            f"`{self._folder.path}` lacks a file that its manifest names ({exc}); restore the store"
                        ) from exc
                    continue
                return
        raise RetryableError(f"the files in `{self._folder.path}` change faster than they can be opened; try again")

    def close(self) -> None:
        """Let go of files and memory."""
        self._move_to(None, None, Overlay(self._format.dim), None)

    def count(self) -> int:
        """How many vectors there are."""
        return (len(self._graph) if self._graph else 0) - self._hidden + len(self._overlay)

    def keys(self) -> NDArray[np.uint64]:
        """All keys, uint64 (count,), in no order."""
        own = self._overlay.keys()
        if self._graph is None:
            return own
        base = self._graph.keys()
        touched = np.fromiter(self._overlay.touched, np.uint64, len(self._overlay.touched))
        return np.concatenate([base[~np.isin(base, touched)], own])

    def get(self, keys: NDArray[np.uint64], out: NDArray[np.float32], found: NDArray[np.bool_]) -> None:
        """Fill in the vectors of those keys that are here, and mark them as found."""
        rows, here = self._overlay.get(keys)
        out[here] = rows
        found |= here
        if self._graph is None:
            return
        touched = self._overlay.touched
        base = self._graph.contains(keys)
        base &= np.fromiter((key not in touched for key in keys.tolist()), np.bool_, keys.size)
        out[base] = self._graph.get(keys[base])
        found |= base

    def nearest(
        self, query: NDArray[np.float64], limit: int, *, exact: bool
    ) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """At least the `limit` best, or all there are: keys, uint64 (n,), and scores, float64 (n,), in no order."""
        keys, scores = self._overlay.nearest(query, limit)
        if self._graph is None:
            return keys, scores
        touched = self._overlay.touched
        there = len(self._graph) - self._hidden
        if exact:
            base_keys, base_scores = self._graph.scan(query, limit, touched)
        else:
            base_keys, base_scores = self._graph.nearest(query, limit, touched)
            if base_keys.size < min(limit, there):
                base_keys, base_scores = self._graph.scan(query, limit, touched)
        return np.concatenate([keys, base_keys]), np.concatenate([scores, base_scores])

    def _refresh(self, manifest: Manifest | None) -> None:
        if manifest is None:
            self.close()
            return
        same_base = self._manifest is not None and self._manifest.base == manifest.base
        if not same_base or self._log is None or self._log.path.name not in manifest.logs:
            self._reload(manifest)
            return
        self._follow(manifest, self._log, self._overlay)

    def _reload(self, manifest: Manifest) -> None:
        """Build a new view beside the old one and change over."""
        base = manifest.base
        graph = None if base is None else Graph(self._folder.path / base.name, base, self._format)
        first = manifest.logs[0]
        log = LogReader(self._folder.path / first, self._format, sequence_of(first))
        self._move_to(manifest, graph, Overlay(self._format.dim), log)
        self._follow(manifest, log, self._overlay)

    def _follow(self, manifest: Manifest, log: LogReader, overlay: Overlay) -> None:
        """Apply what the logs hold behind the place that was read last."""
        pending = manifest.logs[manifest.logs.index(log.path.name) + 1 :]
        before = len(overlay.touched)
        for record in log.read():
            overlay.apply(record)
        for name in pending:
            following = LogReader(self._folder.path / name, self._format, log.next_sequence)
            log.close()
            self._log = log = following
            for record in log.read():
                overlay.apply(record)
        self._manifest = manifest
        if self._graph is not None and len(overlay.touched) != before:
            touched = np.fromiter(overlay.touched, np.uint64, len(overlay.touched))
            self._hidden = int(self._graph.contains(touched).sum())

    def _move_to(self, manifest: Manifest | None, graph: Graph | None, overlay: Overlay, log: LogReader | None) -> None:
        if self._graph is not None:
            self._graph.close()
        if self._log is not None:
            self._log.close()
        self._manifest, self._graph, self._overlay, self._log = manifest, graph, overlay, log
        self._hidden = 0
