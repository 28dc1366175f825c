"""Names that must not come back: entities and documents that were forgotten, known by salted hashes alone. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from operators.arrow_messages import without_rows
from operators.hashes import murmur3_bytes
from operators.records import Decoded, RawChunk, Reject
from operators.shard import take

Kind = Literal["entity", "document"]

REASON = "forgotten"
"""Of a message that is refused since its entity is forgotten."""

DETAIL = "its entity is forgotten; the bytes are not kept"

SALT_BYTES = 16

_STRING = re.compile(rb'("(?:[^"\\]|\\.)*")(\s*:)?', re.DOTALL)
"""A string of JSON, and what makes it a key."""

_SEARCHED_BYTES = 1 << 16
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def name_hash(salt: bytes, kind: Kind, name: str) -> bytes:
    """The 32 bytes by which a name is known. Lone surrogates count as they are."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32, key=salt, person=kind.encode()).digest()


def quick_hash(salt: bytes, entity: str) -> int:
    """A number of 64 bits by which events of a forgotten entity are found among others."""
    low = int.from_bytes(murmur3_bytes(entity.encode("utf-8", "surrogatepass"))[:8], "little")
    return int(_mixed(salt, np.array([low], np.uint64))[0])


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What is forgotten. quick: uint64 (n,), rising, `quick_hash` of the entities. names: `name_hash` of everything."""

    salt: bytes
    quick: NDArray[np.uint64]
    names: frozenset[bytes]

    def has(self, kind: Kind, name: str) -> bool:
        """Whether the name is forgotten."""
        return name_hash(self.salt, kind, name) in self.names

    def taken_out(self, decoded: Decoded) -> Decoded:
        """Signals of forgotten entities, and messages that are no signals and name one, as rejects without bytes.

        The others are as they were. Costs a search of each event's hash; only where that finds one is a name hashed.
        """
        if len(self.quick) == 0:
            return decoded
        rejects = tuple(self._silenced(reject) for reject in decoded.rejects)
        return self._refused(decoded if rejects == decoded.rejects else replace(decoded, rejects=rejects))

    def _silenced(self, reject: Reject) -> Reject:
        """The reject, without bytes if one of its strings is forgotten."""
        for text, colon in _STRING.findall(reject.original[:_SEARCHED_BYTES]):
            try:
                name = "" if colon else json.loads(text)
            except ValueError:
                continue
            if name and self.has("entity", name):
                return Reject(reject.index, reject.offset, REASON, DETAIL, b"", row=reject.row)
        return reject

    def _refused(self, decoded: Decoded) -> Decoded:
        """The signals that are not of forgotten entities; the others join the rejects."""
        if len(decoded.batch) == 0:
            return decoded
        batch = decoded.batch
        mixed = _mixed(self.salt, batch.entity_hash)
        place = np.minimum(np.searchsorted(self.quick, mixed), len(self.quick) - 1)
        near = np.flatnonzero(self.quick[place] == mixed)
        if len(near) == 0:
            return decoded
        known: dict[str, bool] = {}
        gone = np.zeros(len(batch), np.bool_)
        for row in near.tolist():
            name = batch.entity(row)
            if name not in known:
                known[name] = self.has("entity", name)
            gone[row] = known[name]
        rows = np.full(len(batch), -1) if decoded.rows is None else decoded.rows
        found = zip(decoded.index[gone].tolist(), batch.offset[gone].tolist(), rows[gone].tolist(), strict=True)
        rejects = [Reject(i, offset, REASON, DETAIL, b"", row=None if row < 0 else row) for i, offset, row in found]
        merged = sorted((*decoded.rejects, *rejects), key=lambda r: (r.index, -1 if r.row is None else r.row))
        kept = None if decoded.rows is None else rows[~gone]
        return Decoded(take(batch, np.flatnonzero(~gone)), decoded.index[~gone], tuple(merged), kept)


def blanked(raw: RawChunk, decoded: Decoded) -> RawChunk:
    """The chunk without the bytes of messages that are refused as forgotten, for whoever keeps messages.

    Of a message of many signals only the rows go that are: it is written anew, with nulls in their places.
    """
    gone = [(reject.index, reject.row) for reject in decoded.rejects if reject.reason == REASON]
    if not gone:
        return raw
    lengths, starts, data = raw.lengths.copy(), raw.starts, raw.data
    lengths[[index for index, row in gone if row is None]] = 0
    many: dict[int, list[int]] = {}
    for index, row in gone:
        if row is not None:
            many.setdefault(index, []).append(row)
    for index, rows in many.items():
        message = without_rows(raw.message(index), rows)
        starts = np.where(np.arange(len(starts)) == index, len(data), starts)
        data = np.concatenate([data, np.frombuffer(message, np.uint8)])
        lengths[index] = len(message)
    return replace(raw, data=data, starts=starts, lengths=lengths)


def _mixed(salt: bytes, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of names that nobody can look up without the salt."""
    key = np.frombuffer(salt[:8], "<u8").astype(np.uint64)
    mixed = (hashes ^ key) * _MIX
    out: NDArray[np.uint64] = (mixed ^ (mixed >> _SHIFT)) * _MIX
    return out
