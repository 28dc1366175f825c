"""An entity taken out of the snapshot of a shard, as if it had never sent anything. Pure: bytes in, bytes out.

It works on the packed form, so it needs no feature sets; what it does not know it refuses, so that a state that
learns to hold more cannot be left half erased in silence.
"""

from __future__ import annotations

import re
from typing import cast

import numpy as np
from numpy.typing import NDArray

from operators.document_tasks import Passed
from operators.errors import ResumeError
from operators.packing import narrowed, pack, unpack, widened

_EVENTS = re.compile(r"(pending|late)\.(\w+)")
_KEPT = re.compile(r"retained\.(\d+)\.(events\d+|rows)\.(\w+)")
_LINES = re.compile(r"((?:retained\.\d+\.)?\d+)\.(open|floats|ints|open_floats|open_ints)")
_NAMES = ("data", "lengths", "hashes")

Arrays = dict[str, NDArray[np.generic]]


def shard_without(snapshot: bytes, entity_id: str) -> bytes | None:
    """Return the snapshot of `Shard` without the entity; None if it does not hold it.

    Its name, lines, waiting and retained events, corrections and what is known of its rows go; entities behind it
    move up. Counts stay what they were: an event that was waiting counts as used. Raises ResumeError for a snapshot
    of another version, or with anything that is not known here.
    """
    meta, arrays = unpack(snapshot)
    unknown = [n for n in arrays if n not in _NAMES and not any(p.fullmatch(n) for p in (_EVENTS, _KEPT, _LINES))]
    if unknown:
        raise ResumeError(f"a snapshot holds `{unknown[0]}`, from which this Headrace cannot take an entity out")
    index = _place(arrays, entity_id.encode("utf-8", "surrogatepass"))
    if index is None:
        return None
    _drop_name(arrays, index)
    waiting = _drop_events(arrays, "pending", index) + _drop_events(arrays, "late", index)
    _drop_kept(meta, arrays, index)
    for prefix in dict.fromkeys(m[1] for m in map(_LINES.fullmatch, arrays) if m):
        _drop_line(arrays, prefix, index)
    counts = cast("list[int]", meta["counts"])
    counts[0] += waiting
    meta["pending"] = cast("int", meta["pending"]) - waiting
    return pack(meta, arrays)


def passed_without(state: bytes, doc_id: str) -> bytes | None:
    """Return the snapshot of `Passed` without the document; None if it does not hold it."""
    passed = Passed.restored(state)
    return None if passed.turns.pop(doc_id, None) is None else passed.snapshot()


def _place(arrays: Arrays, name: bytes) -> int | None:
    """Which entity has that name."""
    lengths = arrays["lengths"].astype(np.int64)
    alike = np.flatnonzero(lengths == len(name))
    starts = (np.cumsum(lengths) - lengths)[alike]
    wanted = np.frombuffer(name, np.uint8)
    same = (arrays["data"][starts[:, None] + np.arange(len(name))] == wanted).all(axis=1)
    found = alike[same]
    return int(found[0]) if len(found) else None


def _drop_name(arrays: Arrays, index: int) -> None:
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    start = int(ends[index - 1]) if index else 0
    arrays["data"] = np.delete(arrays["data"], slice(start, int(ends[index])))
    for name in ("lengths", "hashes"):
        arrays[name] = np.delete(arrays[name], index)


def _drop_events(arrays: Arrays, prefix: str, index: int) -> int:
    """Take out the entity's events; return how many there were."""
    if f"{prefix}.entity" not in arrays:
        return 0
    entity = arrays[f"{prefix}.entity"].astype(np.int64)
    keep = entity != index
    for name in [n for n in arrays if n.startswith(f"{prefix}.")]:
        arrays[name] = arrays[name][keep]
    arrays[f"{prefix}.entity"] = _moved_up(entity[keep], index)
    if prefix == "late" and not keep.any():
        for name in [n for n in arrays if n.startswith("late.")]:
            del arrays[name]
    return int(np.count_nonzero(~keep))


def _drop_kept(meta: dict[str, object], arrays: Arrays, index: int) -> None:
    """Take the entity's events and rows out of what is retained for corrections."""
    segments = cast("list[dict[str, object]]", meta.get("retained") or [])
    for number, segment in enumerate(segments):
        lows = cast("dict[str, int]", segment["lows"])
        start = f"retained.{number}."
        for kind in dict.fromkeys(m[2] for m in map(_KEPT.fullmatch, arrays) if m and m[1] == str(number)):
            prefix, name = f"{start}{kind}.", f"{kind}.entity"
            entity = widened(arrays[start + name], lows[name], np.dtype(np.int32)).astype(np.int64)
            keep = entity != index
            mine = [n for n in arrays if n.startswith(prefix)]
            for each in mine:
                arrays[each] = arrays[each][keep]
            arrays[start + name], lows[name] = narrowed(_moved_up(entity[keep], index))
            if kind == "rows" and not keep.any():
                for each in mine:
                    del arrays[each]
                    lows.pop(each.removeprefix(start))


def _drop_line(arrays: Arrays, prefix: str, index: int) -> None:
    """Take the entity's line out of the state of one feature set; a state from before it came has none."""
    is_open = arrays[f"{prefix}.open"]
    if index >= len(is_open):
        return
    if is_open[index]:
        line = int(np.count_nonzero(is_open[:index]))
        for name in ("open_floats", "open_ints"):
            arrays[f"{prefix}.{name}"] = np.delete(arrays[f"{prefix}.{name}"], line, axis=0)
    for name in ("open", "floats", "ints"):
        arrays[f"{prefix}.{name}"] = np.delete(arrays[f"{prefix}.{name}"], index, axis=0)


def _moved_up(entity: NDArray[np.int64], index: int) -> NDArray[np.int32]:
    return (entity - (entity > index)).astype(np.int32)
