"""What there is to do: listing − ledger = work. The plan is a pure function; `discover` feeds it from the ports.

A document that is listed is never deleted, whichever source lists it. A document is deleted only if the source
that the ledger names was listed to its end and nobody lists it. So a source that fails, or that INGEST_SOURCES no
longer names, keeps its documents; one that is no longer named is given up by allowing a mass delete.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dataflows.sources.port import Source
from dataflows.sources.topic import TOPIC_SCHEME
from operators.documents import Found, content_hash, memo_key
from operators.errors import ConfigError, RetryableError, SkippableError
from stores.metadata.records import Known

Listings = Mapping[str, Iterable[Found]]
"""By name of the source, all that it lists; only sources whose listing reached its end."""


class MassDeleteError(ConfigError):
    """More than half of a source's documents are gone, and nobody said that this is meant.

    losses: by name of the source, (documents gone, documents that the ledger has of it).
    """

    def __init__(self, losses: Mapping[str, tuple[int, int]]) -> None:
        """Name every source with its counts, and the flag that allows it."""
        said = "; ".join(f"`{name}` has lost {gone} of its {had} documents" for name, (gone, had) in losses.items())
        super().__init__(
            f"{said}. Nothing was changed. If a disk is not mounted or INGEST_SOURCES is wrong, mend that;"
            " if they are to go, run again with `--allow-mass-delete`"
        )
        self.losses = losses


@dataclass(frozen=True, slots=True)
class Item:
    """A document as it is now, and the source that lists it."""

    source: str
    found: Found


@dataclass(frozen=True, slots=True)
class Renamed:
    """A document that has another uri; its content is that of the old one."""

    item: Item
    old: Known


@dataclass(frozen=True, slots=True)
class Work:
    """What must be done so that the ledger is as the listings are; each part by rising uri.

    relisted: unchanged but for the source that lists it, also counted as unchanged.
    """

    added: tuple[Item, ...] = ()
    updated: tuple[Item, ...] = ()
    renamed: tuple[Renamed, ...] = ()
    deleted: tuple[Known, ...] = ()
    relisted: tuple[Item, ...] = ()
    unchanged: int = 0

    @property
    def found(self) -> int:
        """Documents that are listed, each once."""
        return len(self.added) + len(self.updated) + len(self.renamed) + self.unchanged

    def with_old_names(self) -> Work:
        """The same, but what was renamed is added under its new name, and the old one stays for now."""
        added = sorted((*self.added, *(one.item for one in self.renamed)), key=lambda item: item.found.uri)
        return replace(self, added=tuple(added), renamed=())

    @property
    def nothing(self) -> bool:
        """Whether the ledger is as the listings are."""
        return not (self.added or self.updated or self.renamed or self.deleted or self.relisted)


def rename_candidates(listings: Listings, ledger: Iterable[Known]) -> tuple[Item, ...]:
    """The new documents that may be old ones under another uri: as long as one that is gone. Only these are read."""
    state = _State(listings, ledger)
    sizes = {known.size_bytes for known in state.gone if known.content_hash}
    return tuple(item for item in state.new if item.found.size_bytes in sizes)


def plan(
    listings: Listings,
    ledger: Iterable[Known],
    shape: str,
    *,
    hashes: Mapping[str, str] | None = None,
    limit_bytes: int = 0,
    allow_mass_delete: bool = False,
) -> Work:
    """Compare what is listed with what is known.

    shape: hash of all that shapes the result; a document that was made under another one is `updated`.
    hashes: by uri, the content hash of rename candidates that could be read; the others count as added.
    limit_bytes: what a document may have; one that could not be read before and has no more is `updated`, since the
    fingerprint tells neither of the limit nor of permissions.
    The result depends on no order. Where two sources list a uri, the one whose name is less has it.
    Raises MassDeleteError if more than half of a source's documents are gone, renamed ones not counted.
    """
    state = _State(listings, ledger)
    renamed = _renamed(state, hashes or {})
    moved_to = {rename.item.found.uri for rename in renamed}
    moved_from = {rename.old.uri for rename in renamed}
    deleted = tuple(known for known in state.gone if known.uri not in moved_from)
    if not allow_mass_delete:
        _check_losses(deleted, state.known.values())
    updated = []
    relisted = []
    unchanged = 0
    for item in state.both:
        known = state.known[item.found.uri]
        unread = known.state == "dead" and not known.content_hash and item.found.size_bytes <= limit_bytes
        other = known.fingerprint != item.found.fingerprint or known.memo_key != memo_key(known.content_hash, shape)
        if unread or other:
            updated.append(item)
            continue
        unchanged += 1
        if known.source != item.source:
            relisted.append(item)
    added = tuple(item for item in state.new if item.found.uri not in moved_to)
    return Work(added, tuple(updated), renamed, deleted, tuple(relisted), unchanged)


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found. failed: by name of the source, why it could not be listed; its documents stay as they are.

    unnamed: by name of a source that the ledger knows and nobody named, how many documents it keeps.
    """

    work: Work
    failed: Mapping[str, RetryableError] = field(default_factory=dict)
    unnamed: Mapping[str, int] = field(default_factory=dict)


def discover(
    sources: Sequence[Source],
    ledger: Iterable[Known],
    shape: str,
    *,
    limit_bytes: int,
    allow_mass_delete: bool = False,
) -> Discovery:
    """List the sources, read what may have been renamed (up to limit_bytes each), and plan.

    allow_mass_delete: also removes the documents of sources that the ledger knows and nobody named.
    Raises MassDeleteError, and the ConfigError of a source that a person must mend.
    """
    listings: dict[str, list[Found]] = {}
    failed: dict[str, RetryableError] = {}
    for source in sources:
        try:
            listings[source.name] = list(source.list())
        except RetryableError as exc:
            failed[source.name] = exc
    known = list(ledger)
    unnamed = Counter(k.source for k in known if _is_unnamed(k.source, listings.keys() | failed.keys()))
    if allow_mass_delete:
        listings |= {name: [] for name in unnamed}
    by_name = {source.name: source for source in sources}
    hashes: dict[str, str] = {}
    for item in rename_candidates(listings, known):
        try:
            content = by_name[item.source].read(item.found.uri, limit_bytes)
        except (RetryableError, SkippableError):
            continue  # it is planned as a new document, and whoever fetches that meets the same error
        hashes[item.found.uri] = content_hash(content)
    work = plan(listings, known, shape, hashes=hashes, limit_bytes=limit_bytes, allow_mass_delete=allow_mass_delete)
    return Discovery(work, failed, {} if allow_mass_delete else unnamed)


def _is_unnamed(source: str, named: Collection[str]) -> bool:
    """Whether a source is to be named in INGEST_SOURCES and is not; what messages have told of, they must take back."""
    return source not in named and not source.startswith(TOPIC_SCHEME)


class _State:
    """Listings and ledger sorted into new, gone and both, each by uri."""

    def __init__(self, listings: Listings, ledger: Iterable[Known]) -> None:
        listed: dict[str, Item] = {}
        for name in sorted(listings):
            for found in listings[name]:
                item = Item(name, found)
                other = listed.setdefault(found.uri, item)
                # A file may be listed twice by one source while it changes; either will do, but always the same.
                if other.source == name and found.fingerprint < other.found.fingerprint:
                    listed[found.uri] = item
        self.known = {known.uri: known for known in ledger}
        self.new = [listed[uri] for uri in sorted(listed) if uri not in self.known]
        self.both = [listed[uri] for uri in sorted(listed) if uri in self.known]
        self.gone = [
            known for uri, known in sorted(self.known.items()) if known.source in listings and uri not in listed
        ]


def _renamed(state: _State, hashes: Mapping[str, str]) -> tuple[Renamed, ...]:
    """Pair what is gone with what is new and has the same content, both by uri; each is paired once."""
    gone: dict[str, list[Known]] = defaultdict(list)
    for known in reversed(state.gone):
        if known.content_hash:
            gone[known.content_hash].append(known)
    pairs = []
    for item in state.new:
        same = gone.get(hashes.get(item.found.uri, ""))
        if same:
            pairs.append(Renamed(item, same.pop()))
    return tuple(pairs)


def _check_losses(deleted: Iterable[Known], ledger: Iterable[Known]) -> None:
    had: dict[str, int] = defaultdict(int)
    gone: dict[str, int] = defaultdict(int)
    for known in ledger:
        had[known.source] += 1
    for known in deleted:
        gone[known.source] += 1
    losses = {name: (gone[name], had[name]) for name in sorted(gone) if 2 * gone[name] > had[name]}
    if losses:
        raise MassDeleteError(losses)
