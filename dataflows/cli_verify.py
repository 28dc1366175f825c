"""`headrace verify signals`: parse, call, print."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from dataflows.cli_output import Json, print_json, print_summary
from operators.errors import HeadraceError


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
    from dataflows.display import show_row_differences
    from dataflows.verify_signals import verify_signals as verify
    from stores.offline.port import Selection

    first, last = (None if day is None else f"{day:%Y-%m-%d}" for day in (date_first, date_last))
    folder = None if window is None else window.replace("/", "_")
    look = verify(load_settings(), Selection(feature_set, version, folder, first, last))
    records = [difference.record() for difference in look.differences]
    if json:
        print_json(records)
    else:
        show_row_differences(records)
    print_summary(look.record(), json=json)
    if records:
        raise HeadraceError(f"not equal, {len(records)} differ")
