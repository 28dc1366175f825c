"""`headrace explain` for people; nothing here is read by a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataflows.display import console

EVENTS_SHOWN = 40

_STATISTIC = {
    "count": "how many values",
    "sum": "their sum",
    "mean": "sum / count",
    "std": "sample standard deviation (n - 1)",
    "min": "the least",
    "max": "the greatest",
    "first": "the first",
    "last": "the last",
    "ewma": "weighted mean of all events so far: half the weight every {halflife}",
    "ewm_std": "weighted standard deviation of all events so far",
    "zscore": "(last - ewma before it) / ewm_std before it",
}
"""What each statistic is, of the values of one window in the order of their time; nulls are left out."""


def show_explanation(record: Mapping[str, Any]) -> None:
    """Print the row, its revisions, its events, those that did not count, and whether it comes out again."""
    out = console()
    title = f"{_seen(record['entity_id'])} · {record['feature_set']} v{record['version']} · window {record['window']}"
    out.print(title, style="bold", markup=False)
    out.print(
        f"[{record['window_start']}, {record['event_time']}) · revision {record['revision']}, known at"
        f" {record['known_at']}{' · retracted' if record['retracted'] else ''}",
        style="dim",
        markup=False,
    )
    out.print(_values(record))
    _heading(out, "Revisions")
    out.print(_revisions(record["revisions"]))
    events, refused = record["events"], record["refused"]
    _heading(out, f"Events that made it: {len(events):,}")
    _show_events(out, events, refused=False)
    if refused:
        _heading(out, f"Events that did not count: {len(refused):,}")
        _show_events(out, refused, refused=True)
    _show_closing(out, record)


def _show_closing(out: Console, record: Mapping[str, Any]) -> None:
    lines = {
        "closed": f"when the watermark reached {record['closed_at_watermark']}: each partition had shown an event"
        f" {record['watermark_seconds']:g} s newer, or was idle or at its end",
        "before it": f"{record['earlier']:,} earlier events weigh in ewma, ewm_std and zscore (halflife"
        f" {record['halflife_seconds']:g} s)",
        "read from": record["events_from"],
        "code": f"headrace {record['code_version']}",
        "stored": record["content_hash"],
        "recomputed": record["recomputed_hash"] or "no such row",
    }
    out.print()
    for name, value in lines.items():
        out.print(f"{name:>10}  {value}", markup=False, soft_wrap=True)
    equal = record["recomputed"] == "equal"
    out.print("     equal" if equal else " different", style="bold green" if equal else "bold red", end="  ")
    out.print("bit for bit" if equal else "; ".join(_difference(*d) for d in record["different"].items()), markup=False)


def _difference(column: str, values: Sequence[object]) -> str:
    return f"{column}: stored {values[0]!r}, recomputed {values[1]!r}"


def _values(record: Mapping[str, Any]) -> Table:
    """A line a statistic, a column a field; what each statistic is, if there is one field only."""
    values = record["values"]
    fields = list(dict.fromkeys(c.rpartition("__")[0] for c in values))
    statistics = list(dict.fromkeys(c.rpartition("__")[2] for c in values))
    table = _table("", *fields, *(["definition"] if len(fields) == 1 else []))
    halflife = f"{record['halflife_seconds']:g} s"
    for statistic in statistics:
        meaning = [_STATISTIC[statistic].format(halflife=halflife)] if len(fields) == 1 else []
        table.add_row(statistic, *(_number(values[f"{f}__{statistic}"]) for f in fields), *meaning)
    return table


def _revisions(revisions: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("revision", "known at", "cause", "hash", "supersedes")
    for one in revisions:
        cause = one["cause"] or "its window closed"
        if one["retracted"]:
            cause += "; retracted"
        replaced = (one["supersedes"] or "")[:12]
        table.add_row(str(one["revision"]), one["known_at"], escape(_seen(cause)), one["content_hash"][:12], replaced)
    return table


def _show_events(out: Console, events: Sequence[Mapping[str, Any]], *, refused: bool) -> None:
    fields = list(dict.fromkeys(f for e in events for f in e["values"]))
    restated = any(e["known_at"] for e in events)
    table = _table(
        "partition",
        "offset",
        "event_time",
        "sequence",
        *fields,
        *(["verdict", "rule"] if refused else []),
        *(["known at"] if restated else []),
    )
    half = EVENTS_SHOWN // 2
    for number, event in enumerate(events):
        if half <= number < len(events) - half:
            if number == half:
                table.add_row(f"… {len(events) - 2 * half:,} more; --json has all")
            continue
        cells = [event["partition"], str(event["offset"]), event["event_time"] or "–", _number(event["sequence"])]
        cells += [_number(event["values"].get(f)) for f in fields]
        cells += [event["verdict"], event["reason"] or ""] if refused else []
        cells += [event["known_at"] or ""] if restated else []
        table.add_row(*(escape(_seen(c)) for c in cells))
    out.print(table)


def _heading(out: Console, text: str) -> None:
    out.print()
    out.print(text, style="bold", markup=False)


def _table(*names: str) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _number(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _seen(text: str) -> str:
    """The text with everything escaped that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
