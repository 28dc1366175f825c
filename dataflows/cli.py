"""The command line: parse, call, print. Every command's help says what it does and what it leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import orjson
import typer

from operators.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

app = typer.Typer(
    name="headrace",
    help="Raw signals → windowed features, live and in batch, the same to the bit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
backfill = typer.Typer(help="Compute history from files that are complete.", no_args_is_help=True)
dlq = typer.Typer(help="Dead letters: rejected inputs, to look at and send again.", no_args_is_help=True)
late = typer.Typer(help="Late events: what came after its watermark.", no_args_is_help=True)
app.add_typer(backfill, name="backfill")
app.add_typer(dlq, name="dlq")
app.add_typer(late, name="late")

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, and nothing else there.")]


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; an error is one sentence on stderr."""
    try:
        result = app(list(arguments), standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except HeadraceError as error:
        sys.stderr.write(f"headrace: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return result if isinstance(result, int) else 0


@app.command()
def signals(
    json: Json = False,
    process_id: Annotated[int, typer.Option(envvar="BYTEWAX_PROCESS_ID", help="Which process of --addresses this is.")] = 0,
    addresses: Annotated[
        str, typer.Option(envvar="BYTEWAX_ADDRESSES", help="host:port of every process of a cluster, separated by ;")
    ] = "",
) -> None:
    """Run the signal path: from the bus to the feature history and the online store.

    Runs until SIGTERM or Ctrl-C, which end it cleanly; with BUS_FOLLOW=0 until the end of the log. What
    was done is remembered in RECOVERY_DIR: the next run goes on there, also after a crash.
    """
    from dataflows.config import load_settings
    from dataflows.runner import Cluster, run_signals

    settings = load_settings()
    cluster = Cluster(settings.stream_concurrency, process_id, tuple(a for a in addresses.split(";") if a))
    _print_summary(run_signals(settings, cluster).record(), json=json)


@backfill.command("signals")
def backfill_signals(
    input: Annotated[list[str], typer.Option("--input", "-i", help="Files or patterns, .jsonl, .csv or .parquet; each file is a partition.")],
    json: Json = False,
) -> None:
    """Compute features of complete files and add the rows that the history lacks.

    The same operators as live, so the same rows; nothing is written twice, so it is safe to repeat.
    Late events are counted; rejected ones go to the dead letters. Online features stay as they are:
    `feast materialize` brings history online.
    """
    from dataflows.batch import find_inputs
    from dataflows.commands import backfill_files
    from dataflows.config import load_settings

    paths = find_inputs(input)
    done, withheld = backfill_files(load_settings(), paths, quiet=json)
    _print_summary({**done.record(), "repeated": withheld.repeated, "different": withheld.different}, json=json)
    if withheld.different:
        raise HeadraceError(
            f"{withheld.different} rows differ from those that the history holds, which stay: the inputs are not"
            " the log that the history was made of"
        )


@app.command()
def features(
    entity: Annotated[str, typer.Argument(help="The entity_id.")],
    json: Json = False,
) -> None:
    """Show the online features of one entity: the newest row of every view."""
    from dataflows.commands import online_rows
    from dataflows.config import load_settings

    rows = online_rows(load_settings(), entity)
    if json:
        _print_json(rows)
    else:
        from dataflows.display import show_features

        show_features(entity, rows)
    if not rows:
        raise HeadraceError(f"no online features of `{entity}`; is the entity_id right, and has a run written any?")


@app.command()
def compact(json: Json = False) -> None:
    """Merge the small files of the feature history; readers see every row once at any moment."""
    from dataflows.commands import compact_history
    from dataflows.config import load_settings

    _print_summary(compact_history(load_settings(), quiet=json), json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder that everything is written to; emptied first if a demo made it.")] = Path("data/demo"),
) -> None:
    """Show the whole path on real sensor readings, live and as batch, and draw a picture."""
    from dataflows.demo.show import run_demo

    run_demo(out)


@dlq.command("list")
def dlq_list(
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 50,
    reason: Annotated[str | None, typer.Option(help="Only those refused for this reason.")] = None,
    json: Json = False,
) -> None:
    """List dead letters, oldest first, without their contents."""
    from dataflows.commands import letters
    from dataflows.config import load_settings

    found, total = letters(load_settings(), limit=limit, reason=reason)
    if json:
        _print_json(found)
    else:
        from dataflows.display import show_letters

        show_letters(found, total)


@dlq.command("show")
def dlq_show(letter_id: Annotated[str, typer.Argument(metavar="ID")], json: Json = False) -> None:
    """Show one dead letter with its original bytes."""
    from dataflows.commands import letter
    from dataflows.config import load_settings

    found = letter(load_settings(), letter_id)
    if json:
        _print_json([found])
    else:
        from dataflows.display import show_record

        show_record(found)


@dlq.command("replay")
def dlq_replay(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Which ones.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json: Json = False,
) -> None:
    """Put originals back on the signals topic, in a partition of their own, and take them off the list.

    What is still bad comes back as a new dead letter.
    """
    from dataflows.commands import replay_letters
    from dataflows.config import load_settings

    _print_summary({"replayed": replay_letters(load_settings(), _some(ids, everything))}, json=json)


@dlq.command("drop")
def dlq_drop(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Which ones.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json: Json = False,
) -> None:
    """Delete dead letters for good."""
    from dataflows.commands import drop_letters
    from dataflows.config import load_settings

    _print_summary({"dropped": drop_letters(load_settings(), _some(ids, everything))}, json=json)


@late.command("list")
def late_list(
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 50,
    json: Json = False,
) -> None:
    """List late events, in the order in which they were set aside, without their contents."""
    from dataflows.commands import late_events
    from dataflows.config import load_settings

    found, total = late_events(load_settings(), limit=limit)
    if json:
        _print_json(found)
    else:
        from dataflows.display import show_late

        show_late(found, total)


def _some(ids: list[str] | None, everything: bool) -> list[str] | None:
    """The ids that were named, or None for all. Naming none is no way to mean all."""
    if bool(ids) == everything:
        raise ConfigError("name the IDs that `headrace dlq list` shows, or pass --all, not both")
    return ids or None


def _print_json(records: Sequence[Mapping[str, object]]) -> None:
    for record in records:
        sys.stdout.buffer.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()


def _print_summary(record: Mapping[str, object], *, json: bool) -> None:
    if json:
        _print_json([record])
    else:
        from dataflows.display import show_summary

        show_summary(record)
