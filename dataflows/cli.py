"""The command line: parse, call, print. Every command's help says what it does and what it leaves behind."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dataflows import cli_documents, cli_forget, cli_kafka, cli_signals, cli_verify
from dataflows.cli_output import Json, Limit, print_json, print_summary
from operators.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from collections.abc import Sequence


def _help_if_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def _group(help_text: str) -> typer.Typer:
    """A group of commands that shows its help if none of them is named."""
    return typer.Typer(
        help=help_text,
        callback=_help_if_alone,
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


app = _group(
    "Raw signals → windowed features, live and in batch, the same to the bit; documents → chunks to search.\n\n"
    "Settings are environment variables; without any, everything stands in the folder ./data. README.md lists them."
    " Exit codes: 0 done, 1 failed, 2 bad use or settings."
)
backfill = _group("Compute history from complete files, or write it to files.")
dlq = _group("Look at refused inputs, replay or drop them.")
late = _group("Look at late events; release or drop those that are held.")
topics = _group("Look at the topics on Kafka, or make them.")
verify = _group("Hold what was written against what it was made from.")
app.add_typer(backfill, name="backfill")
app.command()(cli_documents.documents)
app.command()(cli_documents.search)
app.add_typer(dlq, name="dlq")
app.add_typer(late, name="late")
app.add_typer(verify, name="verify")
app.add_typer(topics, name="topics")
app.command()(cli_kafka.doctor)
app.command()(cli_kafka.produce)
topics.command("create")(cli_kafka.topics_create)
topics.command("list")(cli_kafka.topics_list)
app.add_typer(cli_forget.forget, name="forget")
verify.command("documents")(cli_documents.verify_documents)
verify.command("signals")(cli_verify.verify_signals)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Which ones, as `headrace dlq list` shows them.")]
HeldIds = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="Which ones, as `headrace late list` shows them.")
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; an error is one sentence on stderr, never a traceback."""
    try:
        result = app(list(arguments), prog_name="headrace", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(f"{error.format_message().rstrip('.')}; --help shows what there is", 2)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except HeadraceError as error:
        return _fail(str(error), 2 if isinstance(error, ConfigError) else 1)
    except SystemExit:  # Typer's answer when whoever read stdout has gone
        return 1
    except Exception as error:  # noqa: BLE001  # nobody is above: what nobody foresaw ends here, as a sentence
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        where = f"`{place.filename}` line {place.lineno}"
        return _fail(f"this is a defect of Headrace, please report it: {text} ({where})", 1)
    return result if isinstance(result, int) else 0


def _fail(sentence: str, code: int) -> int:
    """One line, whatever a library's message holds."""
    sys.stderr.write(f"headrace: {' '.join(filter(None, sentence.splitlines()))}\n")
    return code


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder that everything is written to; emptied first if a demo made it.")
    ] = Path("data/demo"),
) -> None:
    """Show both paths on real sensor readings and documents.

    Runs the readings live and as batch, compares both bit for bit, brings features online with Feast, reads them back
    and draws a picture; indexes documents, asks them, and edits one. Needs no server and no setting.
    """
    from dataflows.demo.show import run_demo

    run_demo(out)


app.command()(cli_signals.signals)
app.command()(cli_signals.explain)
backfill.command("signals")(cli_signals.backfill_signals)
backfill.command("documents")(cli_documents.backfill_documents)


@app.command()
def features(
    entity: Annotated[str, typer.Argument(metavar="ENTITY", help="The entity_id.")],
    *,
    json: Json = False,
) -> None:
    """Show the online features of one entity.

    The newest row of every view, as a model would get it. Exit code 1 if there is none.
    """
    from dataflows.commands import online_rows
    from dataflows.config import load_settings

    rows = online_rows(load_settings(), entity)
    if json:
        print_json(rows)
    else:
        from dataflows.display import show_features

        show_features(entity, rows)
    if not rows:
        raise HeadraceError(f"no online features of `{entity}`; is the entity_id right, and has a run written any?")


@app.command()
def compact(*, json: Json = False) -> None:
    """Merge small files of the feature history.

    Safe while flows write and others read: every row is visible once at any moment.
    """
    from dataflows.commands import compact_history
    from dataflows.config import load_settings

    print_summary(compact_history(load_settings(), quiet=json), json=json)


@dlq.command("list")
def dlq_list(
    *,
    limit: Limit = 50,
    reason: Annotated[str | None, typer.Option(metavar="WORD", help="Only those refused for this reason.")] = None,
    json: Json = False,
) -> None:
    """List dead letters, oldest first, without contents."""
    from dataflows.commands import letters
    from dataflows.config import load_settings

    found, total = letters(load_settings(), limit=limit, reason=reason)
    if json:
        print_json(found)
    else:
        from dataflows.display import show_letters

        show_letters(found, total)


@dlq.command("show")
def dlq_show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="Which one, as `headrace dlq list` shows it.")],
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Only the original, byte for byte.")] = False,
    json: Json = False,
) -> None:
    """Show one dead letter with its original."""
    from dataflows.commands import letter, original_of
    from dataflows.config import load_settings

    if raw:
        sys.stdout.buffer.write(original_of(load_settings(), letter_id))
        sys.stdout.flush()
        return
    found = letter(load_settings(), letter_id)
    if json:
        print_json([found])
    else:
        from dataflows.display import show_record

        show_record(found)


@dlq.command("replay")
def dlq_replay(
    ids: Ids = None,
    *,
    everything: All = False,
    json: Json = False,
) -> None:
    """Try refused inputs again.

    Signals are appended to the partition `replayed-0` of their topic, and the flow reads them like any others.
    Documents are forgotten, so that the next look at their source takes them for new ones. Both are taken off the
    list; what is still bad comes back as a new dead letter.
    """
    from dataflows.commands import replay_letters
    from dataflows.config import load_settings

    print_summary({"replayed": replay_letters(load_settings(), _some(ids, everything=everything))}, json=json)


@dlq.command("drop")
def dlq_drop(
    ids: Ids = None,
    *,
    everything: All = False,
    json: Json = False,
) -> None:
    """Delete dead letters for good."""
    from dataflows.commands import drop_letters
    from dataflows.config import load_settings

    print_summary({"dropped": drop_letters(load_settings(), _some(ids, everything=everything))}, json=json)


@late.command("list")
def late_list(
    *,
    limit: Limit = 50,
    reason: Annotated[str | None, typer.Option(metavar="WORD", help="Only those set aside for this reason.")] = None,
    json: Json = False,
) -> None:
    """List late events as they were set aside, without payloads.

    With LATE_EVENT_POLICY=hold those that are held; else those on the late topic.
    """
    from dataflows.config import load_settings
    from dataflows.late_commands import late_events

    found, total = late_events(load_settings(), limit=limit, reason=reason)
    if json:
        print_json(found)
    else:
        from dataflows.display import show_late

        show_late(found, total)


@late.command("release")
def late_release(
    ids: HeldIds = None,
    *,
    everything: All = False,
    json: Json = False,
) -> None:
    """Apply held events as corrections.

    The running flow takes them up within a second or two, or the next run does: rows that they change come again as
    revisions. What is older than ALLOWED_LATENESS_SECONDS allows goes to the late topic.
    """
    from dataflows.config import load_settings
    from dataflows.late_commands import release_held

    some = _some(ids, "late", everything=everything)
    print_summary({"released": release_held(load_settings(), some)}, json=json)


@late.command("drop")
def late_drop(
    ids: HeldIds = None,
    *,
    everything: All = False,
    json: Json = False,
) -> None:
    """Drop held events for good; they stay counted as late."""
    from dataflows.config import load_settings
    from dataflows.late_commands import drop_held

    print_summary({"dropped": drop_held(load_settings(), _some(ids, "late", everything=everything))}, json=json)


def _some(ids: list[str] | None, group: str = "dlq", *, everything: bool) -> list[str] | None:
    """The ids that were named, or None for all. Naming none is no way to mean all."""
    if bool(ids) == everything:
        raise ConfigError(f"name the IDs that `headrace {group} list` shows, or pass --all, not both")
    return ids or None
