"""One night of the glucose sensor in which its receiver was out of reach: readings that came late, in bursts.

The readings are real. That these came late is made up: the receiver is away from 01:14 on, the sensor stores what it
reads, and sends it in bursts once both are together again, the newest first, and one reading an hour after the rest.

`python -m dataflows.demo.night FOLDER` writes the night to `FOLDER/cgm-0.jsonl`, a partition of a folder bus.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataflows.demo.readings import Recording, load_recordings
from dataflows.demo.story import lines_of

FIRST, LAST = "2016-09-14T00:00", "2016-09-14T06:00"
BURSTS = (
    ("2016-09-14T01:36", "2016-09-14T01:51", "2016-09-14T02:21"),
    ("2016-09-14T01:21", "2016-09-14T01:31", "2016-09-14T02:41"),
    ("2016-09-14T01:16", "2016-09-14T01:16", "2016-09-14T03:26"),
)
"""Event times of the first and the last reading of each burst, and of the reading after which it came."""


def night_of(recording: Recording) -> tuple[bytes, ...]:
    """The signals of the night in the order in which they came, one line each, without their ends.

    recording: of the glucose sensor, with 14 September 2016 in it.
    """
    first, last = _micros(FIRST), _micros(LAST)
    night = recording.take((recording.event_time >= first) & (recording.event_time < last))
    minute = night.event_time // _MINUTE_US * _MINUTE_US
    after = minute.copy()
    for begin, end, came_after in BURSTS:
        after[(minute >= _micros(begin)) & (minute <= _micros(end))] = _micros(came_after)
    lines = lines_of(night, night.values)
    order: NDArray[np.int64] = np.lexsort((minute, after > minute, after))  # a burst stands behind its reading
    return tuple(lines[i] for i in order)


def _micros(moment: str) -> int:
    return int(np.datetime64(moment, "us").astype(np.int64))


_MINUTE_US = 60_000_000


def main(folder: Path) -> None:
    """Write the night as a partition of a topic in the folder, which is made. An earlier one is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    glucose, *_ = load_recordings()
    (folder / "cgm-0.jsonl").write_bytes(b"".join(line + b"\n" for line in night_of(glucose)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
