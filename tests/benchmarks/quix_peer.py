"""Quix Streams over a topic: count, mean and std of one field in one tumbling window of a second.

Runs in an environment of its own: `python quix_peer.py ADDRESS TOPIC EVENTS`. The messages' keys are the entities.
The rate is from the first event to the last, without start-up.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timedelta
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]  # lives in an environment of its own


def main() -> None:
    """Run and print the rate."""
    address, topic_name, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = Application(
        broker_address=address,
        consumer_group=f"quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        use_changelog_topics=False,
        state_dir="quix-state",
        loglevel="ERROR",
    )
    marks: list[float] = []

    def time_of(value: Any, *_: object) -> int:  # noqa: ANN401  # whatever the message holds
        marks.append(time.perf_counter())
        if len(marks) == events:
            app.stop()  # the `count` of `run` is of windows, not of events
        moment = value["event_time"]
        return int(datetime.fromisoformat(moment).timestamp() * 1e3) if isinstance(moment, str) else int(moment)

    topic = app.topic(topic_name, value_deserializer="json", key_deserializer="str", timestamp_extractor=time_of)
    stream = app.dataframe(topic)

    def first(value: Any) -> list[float]:  # noqa: ANN401  # whatever the message holds
        x = value["payload"]["temperature"]
        return [1, x, 0.0]

    def add(state: list[float], value: Any) -> list[float]:  # noqa: ANN401  # whatever the message holds
        n, mean, spread = state
        x = value["payload"]["temperature"]
        delta = x - mean
        mean += delta / (n + 1)
        return [n + 1, mean, spread + delta * (x - mean)]

    windows = stream.tumbling_window(timedelta(seconds=1), grace_ms=timedelta(seconds=5))
    windows.reduce(reducer=add, initializer=first).final()
    app.run()
    print(json.dumps({"events_per_s": (len(marks) - 1) / (marks[-1] - marks[0])}))  # noqa: T201  # this is the answer


if __name__ == "__main__":
    main()
