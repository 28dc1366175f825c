"""What became of every event: read from the committed snapshots, so that it is true after a crash too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

import orjson

from dataflows.signal_flow import FLOW
from operators.windows import counts_in
from stores.offline.port import Withheld
from stores.writers import withheld_in

if TYPE_CHECKING:
    from dataflows.recovery import Recovery
    from operators.feature_sets import FeatureSets
    from operators.retained import Lateness


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of events, and of the rows they made. seen = used + duplicate + conflict + late + dead.

    repeated, different: rows that the history had already from another lineage, which stay as they are.
    """

    seen: int = 0
    used: int = 0
    duplicate: int = 0
    conflict: int = 0
    late: int = 0
    dead: int = 0
    rows: int = 0
    repeated: int = 0
    different: int = 0

    def since(self, before: Summary) -> Summary:
        """What came on top of `before`."""
        return Summary(*(a - b for a, b in zip(asdict(self).values(), asdict(before).values(), strict=True)))

    def record(self) -> dict[str, object]:
        """As printed: `in, used, duplicate, conflict, late, dead, rows`, and what was withheld, if anything."""
        counts: dict[str, object] = asdict(self)
        withheld = {name: counts.pop(name) for name in ("repeated", "different")}
        return {"in": counts.pop("seen"), **counts, **{name: n for name, n in withheld.items() if n}}


def summary_of(recovery: Recovery, sets: FeatureSets, lateness: Lateness | None = None) -> Summary:
    """The totals since the recovery folder was made; events that wait for the watermark count as they stand."""
    seen = late = dead = used = duplicate = conflict = rows = 0
    for state in recovery.states(f"{FLOW}.read").values():
        for feed in orjson.loads(state).values():
            _, s, n, d = cast("list[int]", feed["intake"])
            seen, late, dead = seen + s, late + n, dead + d
    for state in recovery.states(f"{FLOW}.windows").values():
        counts = counts_in(sets, state, lateness)
        used += counts.used
        duplicate += counts.duplicate
        conflict += counts.conflict
        late += counts.late
        rows += counts.rows
    withheld = sum(map(withheld_in, recovery.states(f"{FLOW}.offline").values()), Withheld())
    return Summary(seen, used, duplicate, conflict, late, dead, rows, withheld.repeated, withheld.different)
