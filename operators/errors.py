"""The whole error tree, sorted by what the caller must do.

::

    HeadraceError
    ├── ConfigError            a person must change a setting or a file; exit code 2
    │   └── MissingExtraError  a person must install an extra
    ├── RetryableError         try the same call again, later
    │   ├── UnavailableError   the other side is away
    │   └── ThrottledError     the other side asked for patience
    ├── SkippableError         this record only: it goes to the dead letters
    │   ├── DecodeError        the bytes are not a signal
    │   └── SchemaError        a signal whose fields are of the wrong kind
    └── FatalError             going on would lose or corrupt data: stop; exit code 1
        ├── ResumeError        a saved position does not fit the log or the flow any more
        └── CorruptStoreError  a store holds what nobody wrote

A caller decides by the four branches alone. A message says what happened, to which thing
(in backticks), and what to do.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of every error that Headrace raises on purpose."""


class ConfigError(HeadraceError):
    """A setting or a declaration is wrong; the message names it, the value seen and the mend."""


class MissingExtraError(ConfigError):
    """An optional part was asked for and its package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        """Say that `what` needs the optional dependency group `extra`."""
        super().__init__(f"{what} needs the extra `{extra}`: pip install 'headrace[{extra}]'")
        self.extra = extra


class RetryableError(HeadraceError):
    """The same call may succeed later.

    retry_after_s: seconds that the other side asked for, or None when it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """Keep the message and the wait that the other side asked for, in seconds."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(RetryableError):
    """The other side does not answer."""


class ThrottledError(RetryableError):
    """The other side answers that it is asked too much."""


class SkippableError(HeadraceError):
    """One record is bad; the flow goes on and the record goes to the dead letters.

    reason: a short stable word for metrics and listings; the message is for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Keep the stable reason beside the sentence for people."""
        super().__init__(message)
        self.reason = reason


class DecodeError(SkippableError):
    """The bytes of a record are not a signal at all."""


class SchemaError(SkippableError):
    """A record has the right shape but a field of the wrong kind."""


class FatalError(HeadraceError):
    """Going on would lose or corrupt data."""


class ResumeError(FatalError):
    """A saved position or state does not belong to this log or this flow."""


class CorruptStoreError(FatalError):
    """A store holds something that no Headrace writer can have put there."""
