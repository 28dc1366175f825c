"""`headrace verify signals`: parse, call, print."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from dataflows.cli_output import Json, print_json
from operators.errors import HeadraceError

_MEANING = {
    "equal": "the history is what the events make",
    "checked": "rows computed anew and compared",
    "differences": "named above",
    "online": "served rows compared with the newest of the history",
    "open": "rows of windows that can still change: not compared",
    "unpublished": "rows in the snapshot of a killed run: compared",
    "archived": "partitions read out of the archive",
    "on_bus": "partitions read off the bus",
}


def verify_signals(
    *,
    feature_set: Annotated[str | None, typer.Option("--feature-set", metavar="NAME", help="Only this set.")] = None,
    version: Annotated[int | None, typer.Option("--version", metavar="N", min=1, help="Only this version.")] = None,
    window: Annotated[str | None, typer.Option("--window", metavar="SPEC", help="Only this window, as `5s`.")] = None,
    date_first: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE", help="Only rows from this day on, UTC."),
    ] = None,
    date_last: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], metavar="DATE", help="Only rows up to this day, inclusive."),
    ] = None,
    json: Json = False,
) -> None:
    """Compute the feature history anew and compare it, to the bit.

    All events that a run has read and not refused go through the same operators once more, out of the archive where it
    has all of them, else off the bus. Rows of the history are read in full and held against what comes out; then what
    is served online against the newest rows. Each difference is a line: which row, which field, what it is and what it
    should be. Exit code 1 if anything differs.

    Changes nothing, but publishes what an ended run had left staged. While a run goes on, only what no late event can
    change any more is compared. Needs the settings of the run.
    """
    from dataflows.config import load_settings
    from dataflows.display import show_row_differences, show_summary
    from dataflows.verify_signals import verify_signals as verify
    from stores.offline.port import Selection

    first, last = (None if day is None else f"{day:%Y-%m-%d}" for day in (date_first, date_last))
    folder = None if window is None else window.replace("/", "_")
    look = verify(load_settings(), Selection(feature_set, version, folder, first, last))
    records = [difference.record() for difference in look.differences]
    if json:
        print_json([*records, look.record()])
    else:
        show_row_differences(records)
        show_summary({name: value for name, value in look.record().items() if value is not None}, _MEANING)
    if records:
        raise HeadraceError(f"not equal, {len(records)} differ")
