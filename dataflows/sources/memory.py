"""A source in a dict: the whole contract without a disk, for tests and trials."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from dataflows.sources.port import OUTSIDE, VANISHED
from operators.documents import Found
from operators.errors import HeadraceError, SkippableError


class MemorySource:
    """A `Source` whose documents are put and dropped by its owner. Its uris begin with `memory:<name>/`."""

    def __init__(self, name: str) -> None:
        """Hold no document."""
        self._name = name
        self._documents: dict[str, bytes] = {}
        self.fails_after: tuple[int, HeadraceError] | None = None
        """(number of documents, what is then raised): a listing that does not reach its end."""

    @property
    def name(self) -> str:
        """See Source."""
        return self._name

    def put(self, path: str, content: bytes) -> str:
        """Add or replace a document and return its uri."""
        uri = f"memory:{self._name}/{path}"
        self._documents[uri] = content
        return uri

    def drop(self, path: str) -> None:
        """Remove a document."""
        del self._documents[f"memory:{self._name}/{path}"]

    def list(self) -> Iterator[Found]:
        """See Source. The fingerprint follows from the content."""
        for number, (uri, content) in enumerate(sorted(self._documents.items())):
            if self.fails_after is not None and number >= self.fails_after[0]:
                raise self.fails_after[1]
            yield _found(uri, content)

    def look(self, uri: str) -> Found | None:
        """See Source."""
        self._check(uri)
        return _found(uri, self._documents[uri]) if uri in self._documents else None

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """See Source."""
        self._check(uri)
        if uri not in self._documents:
            raise SkippableError(VANISHED, f"`{uri}` is gone")
        content = self._documents[uri]
        if len(content) > limit_bytes:
            raise SkippableError("too_large", f"`{uri}` has {len(content)} bytes, {limit_bytes} are allowed")
        return content

    def media_type(self, uri: str) -> str | None:
        """See Source: the name tells."""
        del uri
        return None

    def _check(self, uri: str) -> None:
        if not uri.startswith(f"memory:{self._name}/"):
            raise SkippableError(OUTSIDE, f"`{uri}` is no document of `{self._name}`")


def _found(uri: str, content: bytes) -> Found:
    return Found(uri, blake2b(content, digest_size=8).hexdigest(), len(content))
