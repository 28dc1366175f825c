"""The demo's last page: what became of every event, the proof, what Feast answers, and what to type next."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from urllib.parse import unquote

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from dataflows.demo.check import Proof
from dataflows.demo.documents import Papers
from dataflows.demo.folder import REDACTION, WATERMARK_SECONDS, DemoFolder
from dataflows.demo.readings import BUOY, GLUCOSE_SENSOR, STATION
from dataflows.demo.serving import Remembered, Served, moment
from dataflows.demo.story import OUTCOMES

_BAR = 18
_NOTES_AT = 49
_LEVELS_UP_MAX = 3
_ANSWER_CHARS = 29
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLOURS = {"used": "green", "duplicate": "cyan", "conflict": "blue", "late": "magenta", "dead": "red"}
_BECAME = {
    "used": "counted in windows",
    "duplicate": "sent twice: counted once",
    "conflict": "corrected: the last one counts",
    "late": "too late: on the topic `late`",
    "dead": "broken: kept as dead letters",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the demo has found out. counts: the live run's summary."""

    counts: Mapping[str, int]
    proofs: Sequence[Proof]
    served: Sequence[Served]
    remembered: Sequence[Remembered]
    online_store: str
    papers: Papers


def show_findings(out: Console, folder: DemoFolder, findings: Findings) -> None:
    """Print the page; it reads well from 80 columns on."""
    _show_events(out, findings.counts)
    _show_proofs(out, findings.proofs)
    _show_anomalies(out, findings.remembered)
    _show_served(out, findings.served, findings.online_store)
    _show_papers(out, findings.papers)
    _show_next(out, folder)


def _show_events(out: Console, counts: Mapping[str, int]) -> None:
    table = _table("bold", ">", "", "")
    for outcome in OUTCOMES:
        bar = _bar(counts[outcome] / counts["in"])
        table.add_row(outcome, f"{counts[outcome]:,}", f"[{_COLOURS[outcome]}]{bar}[/]", _BECAME[outcome])
    parts = " + ".join(f"{counts[outcome]:,}" for outcome in OUTCOMES)
    _show(out, f"What became of {counts['in']:,} events", table, f"{parts} = {counts['in']:,}, as was mixed in.")


def _show_proofs(out: Console, proofs: Sequence[Proof]) -> None:
    table = _table("", "", ">", "", "green", header=("feature set", "window", "rows", "digest of both", ""))
    for proof in proofs:
        declared = proof.view.feature_set
        name = f"{declared.name} v{declared.version}"
        table.add_row(name, proof.view.window.text, f"{proof.rows:,}", proof.digest, "✓")
    _show(out, "Live = batch, bit for bit", table, "Made of every row's hash, computed anew from its values.")


def _show_anomalies(out: Console, remembered: Sequence[Remembered]) -> None:
    header = ("known at", "entity", "field", "z-score", "last", "1 µs before")
    table = _table("", "", "", ">", ">", ">", header=header)
    for one in remembered:
        anomaly = one.anomaly
        when = f"{moment(anomaly.event_time_us):%Y-%m-%d %H:%M}"
        score = f"[bold red]{_number(anomaly.zscore, signed=True)}[/]"
        values = (_number(one.last_then), _number(one.last_before))
        table.add_row(when, anomaly.entity_id, _with_unit(anomaly.field), score, *values)
    moral = "`last` is Feast's answer by point in time: nothing is known before its window ends."
    _show(out, "Strongest anomalies", table, moral)


def _show_served(out: Console, served: Sequence[Served], online_store: str) -> None:
    header = ("entity", "window", "field", "count", "last", "ewma", "z-score")
    table = _table("", "", "", ">", ">", ">", ">", header=header)
    for one in served:
        if one.view.window != one.view.feature_set.windows[0]:
            continue
        for field in one.view.feature_set.fields:
            count, last, ewma, zscore = (one.values[f"{field}__{s}"] for s in ("count", "last", "ewma", "zscore"))
            cells = (str(count), _number(last), _number(ewma), _number(zscore, signed=True))
            table.add_row(one.entity_id, one.view.window.text, _with_unit(field), *cells)
    values = sum(len(one.values) for one in served)
    moral = (
        f"These and {values - 4 * table.row_count} more by Feast's {online_store} store: first as the flow wrote them,"
        " then as `materialize` brought them from Parquet. Both times they are the newest rows, to the bit."
    )
    _show(out, "Served online now", table, moral)


def _show_papers(out: Console, papers: Papers) -> None:
    table = _table("", ">", "", header=("question", "score", "best answer"))
    for one in papers.answers:
        hit = one.hit
        heading = hit["heading"]
        place = (
            f"page {hit['page']}" if hit["page"] else (heading[-1] if isinstance(heading, tuple) and heading else "")
        )
        name = unquote(str(hit["uri"]).rpartition("/")[2])
        shown = textwrap.shorten(f"{name}, {place}".rstrip(", "), _ANSWER_CHARS, placeholder="")
        table.add_row(one.question, f"{hit['score']:.2f}", escape(shown))
    counts, edited = papers.counts, papers.edited
    found = ", ".join(f"{count} [{kind}]" for kind, count in papers.redacted.items())
    replaced = f"; personal data replaced: {found}" if found else ""
    moral = (
        f"{papers.readmes} READMEs and {papers.licences} PDFs in {counts['chunks']} chunks{replaced}. One line added to"
        f" one of them: {edited['unchanged']} documents not read again, {edited['embedded']} of {edited['chunks']}"
        " chunks of the other embedded anew."
    )
    _show(out, "Documents, searched", table, moral)


def _show_next(out: Console, folder: DemoFolder) -> None:
    out.print("\n[bold]Look at the picture[/bold]")
    _lines(out, [(str(folder.picture), "")])
    out.print("\n[bold]What to type next[/bold]")
    commands = [(f"cd {folder.root}", "laid out like the project")]
    if (path := _missing_path(folder.root)) is not None:
        commands.append((f'export PATH="{path}:$PATH"', ""))
    commands += [
        ("headrace features patient-1", "what is served now"),
        ("headrace dlq list", "the broken ones, and why"),
        ("headrace late list", "those that came too late"),
        ("feast -c feature_repo feature-views list", "what Feast knows"),
        (f"export WATERMARK_SECONDS={WATERMARK_SECONDS} BUS_FOLLOW=0", "as the demo ran"),
        ("headrace signals", "goes on, nothing twice"),
        ("headrace backfill signals -i 'data/bus/signals/*'", "the same rows: none new"),
        ('headrace search "who pays if it breaks"', "the chunks themselves"),
        (f"export INGEST_SOURCES=documents PII_REDACTION={REDACTION}", "as the demo ran"),
        ("headrace documents --once", "nothing is embedded twice"),
    ]
    _lines(out, commands)


def _missing_path(root: Path) -> str | None:
    """The folder of this Python's commands as seen from `root`, or None if the shell finds them already."""
    folder = Path(sys.executable).parent
    found = shutil.which("headrace")
    if found is not None and Path(found).parent == folder:
        return None
    near = os.path.relpath(folder, root.resolve())
    return f"$PWD/{near}" if near.count("..") <= _LEVELS_UP_MAX else str(folder)


def _table(*styles: str, header: Sequence[str] = ()) -> Table:
    """A table without lines. styles: one a column; `>` makes it one of numbers, to the right."""
    table = Table(box=None, show_header=bool(header), header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for style, name in zip_longest(styles, header, fillvalue=""):
        numbers = style == ">"
        table.add_column(name, style="" if numbers else style, justify="right" if numbers else "left", no_wrap=True)
    return table


def _show(out: Console, title: str, table: Table, moral: str) -> None:
    """Print a table between its title and what it says, all set in a little."""
    out.print(f"\n[bold]{escape(title)}[/bold]")
    out.print(Padding(table, (0, 0, 0, 2), expand=False))
    out.print(Padding(f"[dim]{escape(moral)}[/dim]", (0, 0, 0, 2), expand=False))


def _lines(out: Console, commands: Iterable[tuple[str, str]]) -> None:
    """Lines to copy: never broken, however narrow the terminal."""
    for command, meaning in commands:
        gap = " " * max(2, _NOTES_AT - len(command))
        note = f"{gap}[dim]# {escape(meaning)}[/dim]" if meaning else ""
        out.print(f"  [cyan]{escape(command)}[/cyan]{note}", soft_wrap=True)


def _with_unit(field: str) -> str:
    units = {f: u for i in (GLUCOSE_SENSOR, BUOY, STATION) for f, u in zip(i.fields, i.units, strict=True)}
    return f"{field} [dim]{units[field]}[/dim]"


def _bar(share: float) -> str:
    """A bar of `_BAR` cells in eighths; whatever is above nothing is seen."""
    eighths = max(1, round(share * _BAR * 8)) if share > 0 else 0
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:+.1f}".replace("-", "−") if signed else f"{value:,.4g}".replace("-", "−")
