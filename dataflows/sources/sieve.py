"""Sources without the documents that were forgotten: whoever looks at them sees none of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataflows.sources.port import VANISHED
from operators.errors import SkippableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dataflows.sources.port import Source
    from operators.documents import Found
    from operators.forgotten import Forgotten


@dataclass(frozen=True, slots=True)
class SievedSource:
    """The same `Source`, in which forgotten documents are not there."""

    inner: Source
    forgotten: Forgotten

    @property
    def name(self) -> str:
        """What the ledger knows it by."""
        return self.inner.name

    def list(self) -> Iterator[Found]:
        """Yield every document that is not forgotten; see `Source.list`."""
        return (found for found in self.inner.list() if not self.forgotten.has("document", found.uri))

    def look(self, uri: str) -> Found | None:
        """Return the one document; see `Source.look`. A forgotten one is not there."""
        return None if self.forgotten.has("document", uri) else self.inner.look(uri)

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """Return the document's bytes; see `Source.read`. A forgotten one has vanished."""
        if self.forgotten.has("document", uri):
            raise SkippableError(VANISHED, f"`{uri}` is forgotten")
        return self.inner.read(uri, limit_bytes)

    def media_type(self, uri: str) -> str | None:
        """What the source says of the document; see `Source.media_type`."""
        return self.inner.media_type(uri)


def without_forgotten(sources: Sequence[Source], forgotten: Forgotten | None) -> tuple[Source, ...]:
    """The sources as they are if nothing is forgotten, else sieved."""
    return tuple(sources) if forgotten is None else tuple(SievedSource(source, forgotten) for source in sources)
