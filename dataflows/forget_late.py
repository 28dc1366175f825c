"""A forgotten entity in the late topic: its messages become others that are as long and say nothing.

Offsets stay what they are, so that a run that appends the same messages once more changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from stores.offline.disk import fsync

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TYPE = "headrace.signal.forgotten"


def silenced(message: bytes, entity_id: str) -> bytes | None:
    """Return what stands for a late event of the entity: as long, without anything of it; None for other messages."""
    try:
        event = orjson.loads(message)
        if event["type"] == _TYPE:
            return None
        if entity_id not in (event.get("subject"), event["data"]["entity_id"]):
            return None
        name = str(event["id"])
    except (KeyError, TypeError, ValueError):
        return None
    return orjson.dumps({"specversion": "1.0", "id": name, "type": _TYPE})[:-1].ljust(len(message) - 1) + b"}"


def is_forgotten(message: bytes) -> bool:
    """Whether a message of the late topic stands for one that was forgotten."""
    return message.startswith(b'{"specversion":"1.0"') and f'"type":"{_TYPE}"'.encode() in message


def rewrite_lines(path: Path, change: Callable[[bytes], bytes | None]) -> int:
    """Replace lines of a file by others as long; None keeps one. Return how many changed.

    The file is replaced at once, whoever reads it: a kill leaves it old or new.
    """
    fresh = path.with_name(f".{path.name}.forget")
    count = 0
    with path.open("rb") as source, fresh.open("wb") as target:
        for line in source:
            bare = line.rstrip(b"\r\n")
            changed = change(bare)
            if changed is None:
                target.write(line)
            else:
                assert len(changed) == len(bare)
                target.write(changed + line[len(bare) :])
                count += 1
    if count == 0:
        fresh.unlink()
        return 0
    fsync(fresh)
    fresh.replace(path)
    fsync(path.parent)
    return count
