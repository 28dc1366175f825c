"""What a source of documents promises: a listing that is whole or fails, and bytes that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from operators.documents import Found

VANISHED = "vanished"
"""Reason of the SkippableError for a document that is gone since it was listed; the next listing tells, no letter."""

FORGOTTEN = "forgotten"
"""Reason of the SkippableError for a document whose bytes nobody has any more, though it is not gone."""

OUTSIDE = "outside"
"""Reason of the SkippableError for a uri that is none of the source's."""


class Source(Protocol):
    """Documents that can be listed and read. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """What the ledger knows it by: fixed for what it lists, printable, unique among sources."""
        ...

    def list(self) -> Iterator[Found]:
        """Yield every document once, in no promised order, unread.

        To reach the end means that nothing was left out: whoever sees an exception must not conclude that a
        document that was not yielded is gone. A document that comes or goes meanwhile may be yielded or not.
        Raises UnavailableError if the source is away for now, ConfigError if a person must act.
        """
        ...

    def look(self, uri: str) -> Found | None:
        """Return the one document as a listing would yield it, or None if there is none at this uri (any more).

        Nothing outside of the source is touched, whatever the uri. Raises SkippableError `outside` for a uri that
        no listing of this source would yield, whatever stood there, or `unreadable`; UnavailableError as `list`.
        """
        ...

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """Return the document's bytes as they were at one moment.

        Raises SkippableError with the reason `too_large` (more than limit_bytes; no more than that are read),
        `vanished`, `forgotten`, `unreadable`, `not_a_file` or `outside` (not a uri of this source), and
        RetryableError if it changes while it is read or the source is away for now.
        """
        ...

    def media_type(self, uri: str) -> str | None:
        """What the source says of the document that this thread has just read; None: its name tells."""
        ...
