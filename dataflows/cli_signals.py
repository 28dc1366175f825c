"""The commands of the signal path: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from dataflows.cli_output import Json, print_json, print_summary
from operators.errors import ConfigError, HeadraceError

SetName = Annotated[
    str | None,
    typer.Option("--feature-set", metavar="NAME", help="Only this set, in a recovery folder of its own."),
]
Version = Annotated[
    int | None, typer.Option("--version", metavar="N", min=1, help="Its version, if several are declared.")
]


def signals(
    *,
    feature_set: SetName = None,
    version: Version = None,
    json: Json = False,
    process_id: Annotated[
        int,
        typer.Option(metavar="N", envvar="BYTEWAX_PROCESS_ID", help="Which of --addresses this process is, from 0."),
    ] = 0,
    addresses: Annotated[
        str,
        typer.Option(metavar="A;B;…", envvar="BYTEWAX_ADDRESSES", help="host:port of every process of a cluster."),
    ] = "",
) -> None:
    """Run the signal path: bus → features, offline and online.

    Runs until SIGTERM or Ctrl-C, which end it cleanly; with BUS_FOLLOW=0 until the end of the log, where all
    windows are closed. What was done is remembered in RECOVERY_DIR: the next run goes on there, also after
    a crash, and every row is there once. Prints what became of every event.

    With --feature-set only that version is computed, from the beginning of history or where its backfill has come to,
    beside a run of the others, which leaves it out from then on.

    \b
    Settings that matter most (README.md lists all):
      BUS_DIR                 folder of topics that is read [data/bus]
      TOPIC_SIGNALS           its topic, a .jsonl file a partition [signals]
      BUS_FOLLOW              0 = stop at the end of the log [1]
      WATERMARK_SECONDS       how late an event may come [5]
      WATERMARK_IDLE_SECONDS  when a silent partition is left out [30]
      FEATURE_SETS_PATH       what is computed [feature_repo/feature_sets.toml]
      OFFLINE_DATA_PATH       root of the Parquet rows [data/offline]
      ONLINE_STORE            feast, or none [feast]
      RECOVERY_DIR            snapshots, a folder for each flow [data/recovery]
      STREAM_CONCURRENCY      worker threads [1]
    """  # noqa: D301  # \b: click leaves these lines as they are
    from dataflows.config import load_settings
    from dataflows.engine import Cluster
    from dataflows.runner import Beside, run_signals
    from dataflows.set_versions import chosen_set

    settings = load_settings()
    cluster = Cluster(settings.stream_concurrency, process_id, tuple(a for a in addresses.split(";") if a))
    _check_named(feature_set, version)
    beside = None if feature_set is None else Beside(chosen_set(settings, feature_set, version))
    print_summary(run_signals(settings, cluster, beside).record(), json=json)


def backfill_signals(
    patterns: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="PATTERN",
            help="Files: .jsonl, .csv, .parquet, .arrow or .arrows, each a partition. May be repeated.",
        ),
    ] = None,
    *,
    feature_set: SetName = None,
    version: Version = None,
    json: Json = False,
) -> None:
    """Add the rows that the history lacks.

    They come from complete files, or are those of a new version of a feature set.

    The same operators as live, so the same rows; what the history holds is not written again, so it is safe to
    repeat. All rows become visible at the end. Late events are counted; refused ones go to the dead letters.
    Online features stay as they are: `feast materialize` brings history online.

    \b
    Quote patterns, so that the shell leaves them alone:
      headrace backfill signals --input 'history/**/*.parquet'

    CSV and Parquet need the columns entity_id, event_time and sequence, and may have source and trace_id; every
    other column is a field of the payload.

    With --feature-set in place of --input, history is the archive and then the bus, and the rows are those of one set.

    \b
      headrace backfill signals --feature-set pump --version 2
      headrace signals --feature-set pump --version 2       goes on from there

    It reads to the end of the log and leaves windows open. Its snapshots are in the folder NAME-vN of RECOVERY_DIR, so
    that what was stopped or killed goes on. Late and refused events are counted; the run of the others keeps them.
    """  # noqa: D301  # \b: click leaves these lines as they are
    from dataflows.batch import find_inputs
    from dataflows.commands import backfill_files
    from dataflows.config import load_settings

    _check_named(feature_set, version)
    if (feature_set is None) == (not patterns):
        raise ConfigError("name either files with --input or a version with --feature-set NAME --version N")
    if feature_set is not None:
        from dataflows.set_versions import chosen_set
        from dataflows.version_commands import backfill_version

        settings = load_settings()
        done_so = backfill_version(settings, chosen_set(settings, feature_set, version), quiet=json)
        print_summary(done_so.record(), json=json)
        return
    paths = find_inputs(patterns or [])
    done, withheld = backfill_files(load_settings(), paths, quiet=json)
    print_summary({**done.record(), "repeated": withheld.repeated, "different": withheld.different}, json=json)
    if withheld.different:
        raise HeadraceError(
            f"{withheld.different} rows differ from those that the history holds, which stay: the inputs are not"
            " the log that the history was made of"
        )


def explain(  # noqa: PLR0913  # the options of a command
    entity: Annotated[str, typer.Argument(metavar="ENTITY", help="The entity_id.")],
    *,
    at: Annotated[
        str, typer.Option("--at", metavar="TIME", help="A time in the window, or its end, as 2026-03-01T12:00:00Z.")
    ],
    window: Annotated[
        str, typer.Option("--window", metavar="SPEC", help="The window, as `5s`, `1m/10s`, `session:30s`.")
    ],
    feature_set: Annotated[
        str | None,
        typer.Option("--feature-set", metavar="NAME", help="Whose window, if several sets have one like it."),
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", min=1, help="Its version; the highest if none is named.")
    ] = None,
    field: Annotated[str | None, typer.Option("--field", metavar="F", help="Only the values of this field.")] = None,
    json: Json = False,
) -> None:
    """Explain a feature row.

    Shows the row and its revisions, every event of its window with partition and offset, which of them did not count
    and why, and computes the row anew from these events. Reads the archive, and the bus for what is not in it. Exit
    code 1 if what comes out differs from what is stored.
    """
    from dataflows.config import load_settings
    from dataflows.explain_command import Question, explain_row

    asked = Question(entity, at, window, feature_set, version, field)
    record = explain_row(load_settings(), asked)
    if json:
        print_json([record])
    else:
        from dataflows.explain_display import show_explanation

        show_explanation(record)
    if record["recomputed"] != "equal":
        raise HeadraceError("the row computed anew from its events differs from the one that is stored")


def _check_named(feature_set: str | None, version: int | None) -> None:
    if version is not None and feature_set is None:
        raise ConfigError("--version needs --feature-set NAME, whose version it is")
