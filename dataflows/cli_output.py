"""What commands have in common: the option `--json`, and how a record is printed for a program or for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import orjson
import typer

Json = Annotated[bool, typer.Option("--json", help="JSON objects on stdout, one a line, and nothing else there.")]
Limit = Annotated[int, typer.Option(metavar="N", min=1, help="Show at most so many.")]


def print_json(records: Sequence[Mapping[str, object]]) -> None:
    """One JSON object a line on stdout."""
    for record in records:
        sys.stdout.buffer.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()


def print_summary(record: Mapping[str, object], *, json: bool) -> None:
    """Counts: as JSON, or one a line with what each means."""
    if json:
        print_json([record])
    else:
        from dataflows.display import show_summary

        show_summary(record)
