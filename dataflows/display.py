"""Tables, numbers and progress bars for people; nothing here is read by a program."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_MEANING = {
    "in": "events read",
    "used": "in windows, each once",
    "duplicate": "same key, same content: dropped",
    "conflict": "same key, other content: the last one won",
    "late": "below their watermark: on the late topic",
    "dead": "no signals: dead letters",
    "rows": "feature rows made",
    "repeated": "rows that the history had already",
    "different": "rows that the history has otherwise: they stay",
}


def console() -> Console:
    """Where people read: stdout."""
    return Console(highlight=False)


def show_summary(record: Mapping[str, object]) -> None:
    """Print counts, one a line, with what each means."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right", style="cyan")
    table.add_column(style="dim")
    for name, value in record.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value), _MEANING.get(name, ""))
    console().print(table)


def show_record(record: Mapping[str, object]) -> None:
    """Print one record, a line a field, its text as it is."""
    out = console()
    for name, value in record.items():
        out.print(f"{name:>10}  ", style="bold", end="")
        out.print("" if value is None else str(value), markup=False)


def show_letters(found: Sequence[Mapping[str, object]], total: int) -> None:
    """Print a listing of dead letters."""
    table = _table("id", "time", "stage", "reason", "partition", "offset", "detail")
    for record in found:
        table.add_row(*_cells(record, "id", "time", "stage", "reason", "partition", "offset", "detail"))
    _print_listing(table, len(found), total, "dead letters", "headrace dlq show ID; headrace dlq replay|drop ID or --all")


def show_late(found: Sequence[Mapping[str, object]], total: int) -> None:
    """Print a listing of late events."""
    names = ("entity_id", "event_time", "sequence", "reason", "partition", "offset")
    table = _table(*names)
    for record in found:
        table.add_row(*_cells(record, *names))
    _print_listing(table, len(found), total, "late events", "their originals stand on the late topic of the bus")


def show_features(entity: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print the online features of an entity, one table a view."""
    out = console()
    fixed = ("entity_id", "feature_set", "version", "window", "event_time")
    for row in rows:
        title = f"{entity} · {row['feature_set']} v{row['version']} · window {row['window']} ending {row['event_time']}"
        out.print(title, style="bold", markup=False)
        names = [n for n in row if n not in fixed]
        fields = list(dict.fromkeys(n.rpartition("__")[0] for n in names))
        statistics = list(dict.fromkeys(n.rpartition("__")[2] for n in names))
        table = _table("field", *statistics)
        for field in fields:
            table.add_row(field, *(_number(row.get(f"{field}__{s}")) for s in statistics))
        out.print(table)


@contextmanager
def progress_bar(what: str, size_bytes: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that the yielded function advances; quiet: no bar at all."""
    if quiet:
        yield lambda _: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()]
    with Progress(*(columns if size_bytes is not None else columns[:2]), console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=size_bytes)
        yield lambda advance: progress.advance(task, advance)


def _table(*names: str) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _cells(record: Mapping[str, object], *names: str) -> list[str]:
    from rich.markup import escape

    return [escape(str(record[n])) for n in names]


def _number(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _print_listing(table: Table, shown: int, total: int, what: str, next_step: str) -> None:
    out = console()
    if total == 0:
        out.print(f"no {what}")
        return
    out.print(table)
    out.print(f"{shown} of {total} {what}; {next_step}", style="dim", markup=False)
