"""What forgetting leaves: a receipt that says for each place what was removed, and what a second look has found."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataflows.recovery import Recovery, was_made
from dataflows.wiring import forgotten_names_of
from operators.errors import ConfigError
from operators.forgotten import name_hash
from stores.forgotten.port import MARK_DIGITS

if TYPE_CHECKING:
    from pathlib import Path

    from dataflows.config import Settings
    from operators.forgotten import Kind

_WORD = rb"[A-Za-z0-9_.\-\x80-\xff]"
_BYTES_MIN = 6
"""Shorter names stand in any file by chance."""

_READ_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Erased:
    """What became of one place. removed, left: how many of `what`; left: found by a second look.

    kept: what is there and cannot be taken out, as of a log that is only ever appended to. note: one sentence, or "".
    """

    place: str
    what: str
    removed: int = 0
    left: int = 0
    kept: int = 0
    note: str = ""

    def record(self) -> dict[str, object]:
        """As printed."""
        return {
            "place": self.place,
            "what": self.what,
            "removed": self.removed,
            "left": self.left,
            "kept": self.kept,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of every place. mark: by which `forget list` shows it."""

    kind: Kind
    mark: str
    places: tuple[Erased, ...]

    @property
    def left(self) -> int:
        """What could be removed and is there still."""
        return sum(place.left for place in self.places)

    def summary(self) -> dict[str, object]:
        """The last line, as printed."""
        removed, kept = (sum(getattr(p, name) for p in self.places) for name in ("removed", "kept"))
        return {"forgotten": self.mark, "kind": self.kind, "removed": removed, "left": self.left, "kept": kept}


@dataclass(frozen=True, slots=True)
class Step:
    """One place to be erased. erase: takes out and returns how many there were; look: how many are there still."""

    place: str
    what: str
    erase: Callable[[], int]
    look: Callable[[], int] = field(default=lambda: 0)
    note: str = ""


def carry_out(settings: Settings, kind: Kind, name: str, steps: Sequence[Step], told: Sequence[Erased]) -> Receipt:
    """Put the name on the list, erase every place, look at each again, and note it if nothing is left.

    From the first moment on nothing of it comes in any more; a kill leaves the list saying that it is not done, and
    doing it again finishes. told: what is known of places that nothing can be taken out of.
    """
    with closing(forgotten_names_of(settings)) as names:
        names.add(kind, name, now_us=time.time_ns() // 1000)
        removed = [step.erase() for step in steps]
        done = [Erased(s.place, s.what, n, s.look(), 0, s.note) for s, n in zip(steps, removed, strict=True)]
        receipt = Receipt(kind, mark_of(settings, kind, name), (*done, *told))
        if receipt.left == 0:
            names.finish(kind, name)
    return receipt


def mark_of(settings: Settings, kind: Kind, name: str) -> str:
    """By which the list shows the name."""
    with closing(forgotten_names_of(settings)) as names:
        known = names.load()
    assert known is not None
    return name_hash(known.salt, kind, name).hex()[:MARK_DIGITS]


@contextmanager
def held(folders: Sequence[Path]) -> Iterator[list[Recovery]]:
    """The recovery folders that runs have made, kept from them. Raises ConfigError if a run is on."""
    with ExitStack() as stack:
        out = []
        for folder in folders:
            recovery = Recovery(folder)
            stack.callback(recovery.release)
            try:
                there = recovery.hold()
            except ConfigError as error:
                raise ConfigError(
                    f"a run is on in `{folder}`: stop it first, since what it holds in memory cannot be taken from it"
                ) from error
            if there:
                out.append(recovery)
        yield out


def recovery_folders(settings: Settings) -> list[Path]:
    """The recovery folder and those that stand in it."""
    root = settings.recovery_dir
    inside = sorted(path for path in root.iterdir() if path.is_dir() and was_made(path)) if root.exists() else []
    return [root, *inside]


class ByteSearch:
    """Looks for a name in files, byte by byte, where it stands as a word of its own."""

    def __init__(self, name: str, common: Collection[str] = ()) -> None:
        """Prepare for the name as it is and as JSON may escape it. common: words that files hold for other reasons."""
        plain = name.encode()
        forms = {plain, json.dumps(name).encode()[1:-1], json.dumps(name, ensure_ascii=False).encode()[1:-1]}
        text = b"|".join(re.escape(form) for form in sorted(forms))
        self._pattern = re.compile(b"(?<!" + _WORD + b")(?:" + text + b")(?!" + _WORD + b")")
        self._overlap = max(map(len, forms)) + 1
        self._usable = len(plain) >= _BYTES_MIN and name not in common

    def files(self, *roots: Path) -> list[Path]:
        """Those of the files, and of all files below the folders, that hold it.

        None for a name that stands anywhere by chance.
        """
        if not self._usable:
            return []
        found = {p for root in roots for p in ([root] if root.is_file() else root.rglob("*")) if p.is_file()}
        return [path for path in sorted(found) if self._in_file(path)]

    def _in_file(self, path: Path) -> bool:
        with path.open("rb") as file:
            tail = b""
            while block := file.read(_READ_BYTES):
                if self._pattern.search(tail + block):
                    return True
                tail = block[-self._overlap :]
        return False


def beside(path: Path) -> list[Path]:
    """A SQLite file with its write-ahead log."""
    return [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")]
