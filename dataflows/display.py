"""Tables, numbers and progress bars for people; nothing here is read by a program."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from operators.document_tasks import DOCUMENT_STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dataflows.document_plan import Planned

_MEANING = {
    "in": "events read",
    "used": "in windows, each once",
    "duplicate": "same key, same content: dropped",
    "conflict": "same key, other content: the last one won",
    "late": "below their watermark: set aside",
    "dead": "refused: dead letters",
    "rows": "feature rows",
    "repeated": "rows that the history had already",
    "different": "rows that the history has otherwise: they stay",
    "found": "documents listed",
    "added": "new ones, written",
    "updated": "changed ones, written anew",
    "deleted": "gone ones, removed",
    "renamed": "moved ones: nothing embedded",
    "unchanged": "not read again",
    "chunks": "in the documents written",
    "embedded": "of them with a new vector",
    "partitions": "folders whose small files were merged",
    "equal": "source, ledger, chunks and vectors say the same",
    "checked": "documents, listed or known",
    "differences": "that are there now",
    "mended": "of those that were there before",
    "to_embed": "texts that have no vector yet",
    "tokens": "in these texts",
    "version": "of the dataset",
    "digest": "of its rows, whatever file they are in",
    "replayed": "dead letters, to be tried again",
    "sent": "signals, acknowledged",
    "failed": "signals that were not taken",
    "seconds": "from the first to the last",
    "rate": "signals a second",
}


_WOULD = {
    "added": "new ones, to be written",
    "updated": "changed ones, to be written anew",
    "deleted": "gone ones, to be removed",
    "renamed": "moved ones",
    "chunks": "in the documents to be written",
    "dead": "refused: to be dead letters",
}
"""What counts mean in a plan."""

_CHECK_WIDTH = len("feature sets")
_DAY_S = 86_400
_WIDE = 130
_WHOLE = ("id", "reason", "time")


def console() -> Console:
    """Where people read: stdout."""
    return Console(highlight=False)


def show_summary(record: Mapping[str, object], meanings: Mapping[str, str] | None = None) -> None:
    """Print counts, one a line, with what each means. meanings: what some of them mean here."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right", style="cyan", overflow="fold")
    table.add_column(style="dim")
    means = _MEANING | dict(meanings or {})
    for name, value in record.items():
        table.add_row(name, *_cells({"value": _count(value), "means": means.get(name, "")}, "value", "means"))
    console().print(table)


def show_record(record: Mapping[str, object]) -> None:
    """Print one record, a line a field that has a value; what no terminal should obey is escaped."""
    out = console()
    shown = {name: value for name, value in record.items() if value is not None}
    width = max(map(len, shown))
    for name, value in shown.items():
        out.print(name.rjust(width), style="bold", end="  ")
        out.print(_visible(str(value)), markup=False, soft_wrap=True)


def show_letters(found: Sequence[Mapping[str, object]], total: int) -> None:
    """Print a listing of dead letters; year, seconds and the sentence of each only where the terminal is wide.

    Of a document the whole uri too; elsewhere its last part.
    """
    wide = console().width >= _WIDE
    names = ["id", "reason", "partition", "offset", "time", *(["detail"] if wide else [])]
    table = _table(*names)
    for record in found:
        time = str(record["time"])[: len("2026-03-01T12:00:00")].replace("T", " ")
        shown = {**record, "time": time if wide else time[len("2026-") : -len(":00")]}
        if record["stage"] in DOCUMENT_STAGES:
            uri = str(record["partition"])
            shown |= {"offset": "–", "partition": uri if wide else unquote(uri.rpartition("/")[2])}
        table.add_row(*_cells(shown, *names))
    _print_listing(table, len(found), total, "dead letters", "headrace dlq show|replay|drop ID")


def show_differences(records: Sequence[Mapping[str, object]]) -> None:
    """Print differences between what was written and what it was made from; mended ones are marked."""
    if not records:
        return
    mended = "mended" in records[0]
    table = _table("difference", "where", "detail", *(["mended"] if mended else []))
    for record in records:
        where = record["uri"] if record["uri"] is not None else record["key"]
        cells = _cells({**record, "where": "" if where is None else where}, "difference", "where", "detail")
        table.add_row(*cells, *([_count(record["mended"])] if mended else []))
    console().print(table)


def show_row_differences(records: Sequence[Mapping[str, object]]) -> None:
    """Print differences between the feature history and the events that it was made from."""
    if not records:
        return
    out = console()
    for record in records:
        where = f"{record['feature_set']} v{record['version']} {record['window']}"
        whose = (record["entity_id"], record["event_time"] or record["date"], record["field"])
        place = " · ".join(_visible(str(one)) for one in (record["difference"], where, *whose) if one is not None)
        values = "" if record["field"] is None else f"stored {record['stored']}, recomputed {record['recomputed']}"
        said = "; ".join(filter(None, (values, _visible(str(record["detail"])))))
        out.print(f"{place}: {said}" if said else place, markup=False, soft_wrap=True)
    out.print()


def show_plan(documents: Sequence[Planned], total: int, record: Mapping[str, object]) -> None:
    """Print what a run would do: the first documents that it concerns, and the counts."""
    table = _table("what", "document", "chunks", "to embed")
    for one in documents:
        table.add_row(
            *_cells({"what": one.what, "uri": one.uri}, "what", "uri"), f"{one.chunks:,}", f"{one.to_embed:,}"
        )
    if documents:
        _print_listing(table, len(documents), total, "documents", "nothing was changed")
    show_summary(record, _WOULD)


def show_late(found: Sequence[Mapping[str, object]], total: int) -> None:
    """Print a listing of late events; those that are held have an id."""
    held = bool(found) and "watermark" in found[0]
    place = ("id",) if held else ("partition", "offset")
    names = ("entity_id", "event_time", "sequence", "reason", *place)
    then = "headrace late release|drop ID" if held else "their originals stand on the late topic of the bus"
    table = _table(*names)
    for record in found:
        table.add_row(*_cells(record, *names))
    _print_listing(table, len(found), total, "late events", then)


def show_features(entity: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print the online features of an entity, one table a view: a line a statistic, a column a field."""
    out = console()
    fixed = ("entity_id", "feature_set", "version", "window", "event_time")
    for row in rows:
        view = f"{row['feature_set']} v{row['version']} · window {row['window']} ending {row['event_time']}"
        out.print(f"{_visible(entity)} · {view}", style="bold", markup=False)
        names = [n for n in row if n not in fixed]
        fields = list(dict.fromkeys(n.rpartition("__")[0] for n in names))
        statistics = list(dict.fromkeys(n.rpartition("__")[2] for n in names))
        table = _table("", *fields)
        for statistic in statistics:
            table.add_row(statistic, *(_number(row.get(f"{field}__{statistic}")) for field in fields))
        out.print(table)


def show_hits(hits: Sequence[Mapping[str, object]]) -> None:
    """Print chunks that were found, best first: score, document and place, then the text."""
    out = console()
    if not hits:
        out.print(
            "nothing found; `headrace documents --once` indexes what INGEST_SOURCES names", style="dim", markup=False
        )
    for number, hit in enumerate(hits, 1):
        begin = int(str(hit["offset"]))
        page = "" if hit["page"] is None else f"page {hit['page']}, "
        place = f"{hit['uri']} · {page}characters {begin:,} to {begin + int(str(hit['length'])):,}"
        heading = hit["heading"]
        above = [_visible(str(part)) for part in heading] if isinstance(heading, (list, tuple)) else []
        out.print(
            f"{number}. {hit['score']:.3f}  {_visible(' › '.join(above) or str(hit['title']))}",
            style="bold",
            markup=False,
        )
        out.print(f"   {_visible(place)}", style="dim", markup=False, soft_wrap=True)
        text = "\n".join(_visible(line) for line in str(hit["text"]).splitlines())
        out.print(Padding(Text(text), (0, 0, 1, 3)))


def show_finding(check: str, state: str, says: str) -> None:
    """Print what was found about one thing, a line or a few; what no terminal should obey is escaped."""
    mark, style = {"ok": ("✓", "green"), "wrong": ("✗", "bold red")}.get(state, ("–", "dim"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style=style)
    table.add_column(style="bold", min_width=_CHECK_WIDTH)
    table.add_column(overflow="fold", style="dim" if state == "skipped" else "")
    table.add_row(mark, check, *_cells({"says": says}, "says"))
    console().print(table)


def show_topics(records: Sequence[Mapping[str, object]]) -> None:
    """Print topics, a line each."""
    names = list(records[0]) if records else []
    short = {"replication": "copies", "retention_seconds": "kept", "bytes_max": "largest"}
    table = _table(*(short.get(name, name) for name in names))
    for record in records:
        shown = {name: "–" if value is None else _count(value) for name, value in record.items()}
        if isinstance(kept := record.get("retention_seconds"), int):
            shown["retention_seconds"] = "for ever" if kept < 0 else f"{kept / _DAY_S:g} d"
        table.add_row(*_cells(shown, *names))
    console().print(table)


@contextmanager
def progress_bar(what: str, size_bytes: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that the yielded function advances; none if `quiet`, and none where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()]
    if size_bytes is None:
        columns = [*columns[:2], TextColumn("{task.completed}")]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=size_bytes)
        yield lambda advance: progress.advance(task, advance)


@contextmanager
def task_bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that the yielded function sets to (done, of); none if `quiet` or where stderr is no terminal.

    of: 0 where nobody knows.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of or None)


def _table(*names: str) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in _WHOLE)
    return table


def _cells(record: Mapping[str, object], *names: str) -> list[str]:
    from rich.markup import escape

    return [escape(_visible(str(record[n]))) for n in names]


def _visible(text: str) -> str:
    """The text with everything escaped that would move the cursor or not be seen; line ends stay in sight too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _count(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


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
