"""Documents in files of this machine: folders, single files, and globs over them.

Left out: what is hidden (a name that begins with a dot, below the root), what is no regular file, links to
folders (these are where circles come from; name their target as a source) and links that lead out of the root,
so that whoever may write into a source cannot have other files read.
"""

# A path stays text: it comes back byte for byte, and a listing makes a hundred thousand of them.
# ruff: noqa: PTH100, PTH111, PTH112, PTH114, PTH116, PTH117, PTH118, PTH120

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from errno import EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM
from urllib.parse import quote_from_bytes, unquote_to_bytes

from dataflows.sources.globs import FolderGlob, Globs
from dataflows.sources.port import OUTSIDE, VANISHED
from operators.documents import Found
from operators.errors import ConfigError, HeadraceError, RetryableError, SkippableError, UnavailableError

_SCHEME = "file://"
_GLOB = re.compile(r"[*?[]")
_GONE = (ENOENT, ENOTDIR)
_READ_BYTES = 1 << 20


class FileSource:
    """A `Source` over one entry of INGEST_SOURCES. Nothing stays open between calls."""

    def __init__(self, entry: str, *, include: Sequence[str], exclude: Sequence[str]) -> None:
        """entry: a path or `file://` URL; what looks like a glob and exists is taken as it is written.

        include and exclude: globs on paths below the root; neither concerns a single file that is named itself.
        Raises ConfigError if there is nothing at that place, unless it is a glob.
        """
        path = _entry_path(entry)
        self._include = Globs(include, "SOURCE_INCLUDE")
        self._exclude = Globs(exclude, "SOURCE_EXCLUDE")
        self._within: FolderGlob | None = None
        self._root = path
        self._name = uri_of(path)
        if not os.path.lexists(path) and (glob := _GLOB.search(path)):
            self._root, _, pattern = _cut(path, path.rfind("/", 0, glob.start()))
            self._within = FolderGlob(pattern, "INGEST_SOURCES")
            self._name = f"{uri_of(self._root).rstrip('/')}/{pattern.encode('utf-8', 'replace').decode()}"
        try:
            mode = os.stat(self._root).st_mode
        except OSError as exc:
            raise ConfigError(f"INGEST_SOURCES names `{entry}`, which cannot be found: {exc.strerror}") from exc
        if not (stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and self._within is None)):
            raise ConfigError(f"INGEST_SOURCES names `{entry}`, which is neither a folder nor a file")
        self._single = stat.S_ISREG(mode)

    @property
    def name(self) -> str:
        """The entry as a `file://` URL."""
        return self._name

    def list(self) -> Iterator[Found]:
        """See Source. A folder that cannot be read fails the listing, unless SOURCE_EXCLUDE names it."""
        if self._single:
            yield from self._list_single()
            return
        folders = [""]
        while folders:
            folder = folders.pop()
            for entry, path in self._entries(folder):
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if self._within is None or self._within.leads_to(path):
                            folders.append(path)
                    elif self._takes(path) and (status := self._status(entry)) is not None:
                        yield _found(entry.path, status)
                except OSError as exc:
                    if exc.errno not in _GONE:  # gone since its folder was read: no longer a document
                        raise _unlisted(exc, entry.path) from exc

    def look(self, uri: str) -> Found | None:
        """See Source."""
        named = path_of(uri)
        if not self._single and (named is None or not self._may_list(named)):
            raise self._outside(uri)
        path = self._path(uri)
        try:
            if self._single:
                return next(self._list_single(), None)
            status = os.stat(path)
        except OSError as exc:
            if exc.errno not in _GONE:
                raise _unread(exc, uri) from exc
            if not os.path.isdir(self._root):
                raise UnavailableError(f"`{self._name}` is not there") from exc
            return None
        return _found(path, status) if stat.S_ISREG(status.st_mode) else None

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """See Source."""
        path = self._path(uri)
        try:
            # NONBLOCK, since a pipe that stands in the file's place would be waited for without end.
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return _read(file, uri, limit_bytes)
            finally:
                os.close(file)
        except OSError as exc:
            raise _unread(exc, uri) from exc

    def media_type(self, uri: str) -> str | None:
        """See Source: the name tells."""
        del uri
        return None

    def _may_list(self, path: str) -> bool:
        """Whether a listing would yield a file at that path: by its name, and on its way is no link to a folder."""
        root = self._root.rstrip("/")
        if not path.startswith(f"{root}/"):
            return False
        below = path.removeprefix(f"{root}/")
        ends = [at for at, character in enumerate(below) if character == "/"]
        for end in (*ends, len(below)):
            name = below[:end]
            if name.rpartition("/")[2].startswith(".") or self._exclude.fit(name):
                return False
            if end < len(below) and (
                os.path.islink(f"{root}/{name}") or (self._within is not None and not self._within.leads_to(name))
            ):
                return False
        return self._takes(below)

    def _list_single(self) -> Iterator[Found]:
        try:
            status = os.stat(self._root)
        except OSError as exc:
            if exc.errno in _GONE and os.path.isdir(os.path.dirname(self._root)):
                return
            raise _unlisted(exc, self._root) from exc
        if stat.S_ISREG(status.st_mode):
            yield _found(self._root, status)

    def _entries(self, folder: str) -> Iterator[tuple[os.DirEntry[str], str]]:
        """What stands in the folder and its path below the root, by name."""
        place = os.path.join(self._root, folder) if folder else self._root
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as exc:
            if folder and exc.errno in _GONE:
                return
            raise _unlisted(exc, place) from exc
        for entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not entry.name.startswith(".") and not self._exclude.fit(path):
                yield entry, path

    def _takes(self, path: str) -> bool:
        return self._include.fit(path) and (self._within is None or self._within.takes(path))

    def _status(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        """The status of the regular file that the entry is or, within the root, leads to; else None."""
        if entry.is_symlink():
            if not self._holds(entry.path):
                return None
            try:
                status = os.stat(entry.path)
            except OSError as exc:
                if exc.errno == ELOOP:
                    return None
                raise
        else:
            status = entry.stat(follow_symlinks=False)
        return status if stat.S_ISREG(status.st_mode) else None

    def _holds(self, path: str) -> bool:
        """Whether the path, with all links followed, stays below the root."""
        root = os.path.realpath(self._root)
        return os.path.realpath(path).startswith(root.rstrip("/") + "/")

    def _path(self, uri: str) -> str:
        """The path at the uri. A uri may come from a bus, so it is trusted no further than the root."""
        path = path_of(uri)
        if path is None or not (path == self._root if self._single else self._holds(path)):
            raise self._outside(uri)
        return path

    def _outside(self, uri: str) -> SkippableError:
        return SkippableError(OUTSIDE, f"`{uri}` is no document of the source `{self._name}`")


def uri_of(path: str) -> str:
    """The `file://` URL of an absolute path; every byte of a name, UTF-8 or not, comes back by `path_of`."""
    return _SCHEME + quote_from_bytes(os.fsencode(path))


def path_of(uri: str) -> str | None:
    """The absolute path that a uri of `uri_of` stands for; None for any other text."""
    path = os.fsdecode(unquote_to_bytes(uri.removeprefix(_SCHEME)))
    plain = os.path.isabs(path) and path == os.path.normpath(path) and "\0" not in path
    return path if plain and uri_of(path) == uri else None


def _entry_path(entry: str) -> str:
    if entry.startswith(_SCHEME):
        path = os.fsdecode(unquote_to_bytes(entry.removeprefix(_SCHEME).removeprefix("localhost")))
        if not path.startswith("/"):
            raise ConfigError(f"INGEST_SOURCES names `{entry}`; a file URL has three slashes, as in file:///data/docs")
    else:
        path = os.path.expanduser(entry)
    if "\0" in path:
        raise ConfigError(f"INGEST_SOURCES names `{entry}`, which no path can be")
    return os.path.abspath(path)


def _cut(path: str, at: int) -> tuple[str, str, str]:
    return path[:at] or "/", path[at], path[at + 1 :]


def _found(path: str, status: os.stat_result) -> Found:
    # Size: a file system that counts whole seconds shows two edits within one as the same time.
    # Time: an edit that keeps the length. Inode: a file moved into the place of another with the same time and
    # size, as an unpacked archive or `cp -p` leaves it.
    fingerprint = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
    return Found(uri_of(path), fingerprint, status.st_size)


def _read(file: int, uri: str, limit_bytes: int) -> bytes:
    before = os.fstat(file)
    if not stat.S_ISREG(before.st_mode):
        raise SkippableError("not_a_file", f"`{uri}` is not a regular file")
    if before.st_size > limit_bytes:
        raise SkippableError("too_large", f"`{uri}` has {before.st_size} bytes, {limit_bytes} are allowed")
    content = bytearray()
    while piece := os.read(file, min(_READ_BYTES, before.st_size + 1 - len(content))):
        content += piece
    after = os.fstat(file)
    # Half of one version and half of the next would be chunked as if somebody had written it.
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(content) != before.st_size:
        raise RetryableError(f"`{uri}` changes while it is read; try again when its writer is done")
    return bytes(content)


def _unlisted(exc: OSError, path: str) -> HeadraceError:
    shown = os.fsencode(path).decode("utf-8", "replace")
    if exc.errno in (EACCES, EPERM, ENAMETOOLONG, ELOOP):
        return ConfigError(
            f"`{shown}` cannot be listed: {exc.strerror}; make it readable or name it in SOURCE_EXCLUDE."
            " Nothing of its source was changed, since it cannot be told what is gone"
        )
    return UnavailableError(f"`{shown}` cannot be listed: {exc.strerror}")


def _unread(exc: OSError, uri: str) -> HeadraceError:
    if exc.errno in _GONE:
        return SkippableError(VANISHED, f"`{uri}` is gone since it was listed")
    if exc.errno in (EACCES, EPERM, ENAMETOOLONG, ELOOP):
        return SkippableError("unreadable", f"`{uri}` cannot be read: {exc.strerror}")
    return UnavailableError(f"`{uri}` cannot be read: {exc.strerror}")
