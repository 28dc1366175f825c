"""The commands of the document path: parse, call, print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dataflows.cli_output import Json, print_json, print_summary
from operators.errors import HeadraceError, UnavailableError

if TYPE_CHECKING:
    from dataflows.config import Settings

MassDelete = Annotated[
    bool,
    typer.Option(
        "--allow-mass-delete", help="Let more than half of a source go, and sources that are no longer named."
    ),
]


def documents(
    *,
    once: Annotated[bool, typer.Option("--once", help="End when everything found is done.")] = False,
    allow_mass_delete: MassDelete = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only tell what a run would do now, and how much it would embed.")
    ] = False,
    json: Json = False,
) -> None:
    """Run the document path: files → chunks and vectors.

    Looks at the sources again and again until SIGTERM or Ctrl-C, which end it cleanly, or once. Works only where
    something changed: what is in the ledger with the same content and the same settings is not read again, and no text
    is embedded twice. A document that cannot be read becomes a dead letter. Prints what became of every document.

    With KAFKA_BROKERS, messages on TOPIC_DOCS bring documents as well, take them away, and point at files that have
    changed; `--once` reads them to the end of the topic.

    \b
    Settings that matter most (README.md lists all):
      INGEST_SOURCES            folders, files and globs, with commas between them
      SOURCE_INCLUDE            what is a document [**/*.md,**/*.txt,**/*.pdf]
      SOURCE_POLL_INTERVAL_SEC  seconds between two looks [60]
      TOPIC_DOCS                messages about documents, on Kafka [docs]
      PII_REDACTION             off, regex or presidio [off]
      CHUNK_SIZE                characters of a chunk, at most [1000]
      EMBEDDINGS                local, stub or openai [local]
      METADATA_DB_URL           documents and chunks [sqlite:///data/metadata.db]
      VECTORSTORE_PATH          vectors [data/vectors]
      RECOVERY_DIR              snapshots, in its `documents` [data/recovery]
    """  # noqa: D301  # \b: click leaves these lines as they are
    from dataflows.config import load_settings
    from dataflows.display import task_bar
    from dataflows.document_runner import run_documents
    from dataflows.engine import Cluster

    settings = load_settings()
    if plan:
        _plan(settings, allow_mass_delete=allow_mass_delete, json=json)
        return
    once = once or not settings.bus_follow
    with task_bar("documents", quiet=json) as advanced:
        done = run_documents(
            settings,
            Cluster(settings.stream_concurrency),
            once=once,
            allow_mass_delete=allow_mass_delete,
            advanced=advanced,
        )
    print_summary(done.record, json=json)
    _tell_away(done.away)


def _plan(settings: Settings, *, allow_mass_delete: bool, json: bool) -> None:
    from dataflows.display import show_plan, task_bar
    from dataflows.document_plan import plan_documents

    with task_bar("plan", quiet=json) as advanced:
        planned = plan_documents(settings, allow_mass_delete=allow_mass_delete, advanced=advanced)
    if json:
        print_json([planned.record])
    else:
        show_plan(planned.documents, planned.concerned, planned.record)
    _tell_away(planned.away)


def _tell_away(away: Mapping[str, str]) -> None:
    if away:
        said = "; ".join(f"`{name}`: {why}" for name, why in sorted(away.items()))
        raise UnavailableError(f"not every source could be listed, its documents stay as they are: {said}")


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for, in words of your own.")],
    *,
    limit: Annotated[int, typer.Option("-k", metavar="N", min=1, max=1000, help="Show at most so many chunks.")] = 5,
    uri_glob: Annotated[
        str | None,
        typer.Option("--filter", metavar="GLOB", help="Only documents whose whole uri fits; `*` is anything."),
    ] = None,
    json: Json = False,
) -> None:
    """Find the chunks that answer best, by meaning and by words.

    Answers from what `headrace documents` has written, also while it runs. While a changed model's vectors are still
    being made, answers come from the old ones.
    """
    from dataflows.config import load_settings
    from dataflows.document_commands import find_chunks

    hits = find_chunks(load_settings(), text, limit=limit, uri_glob=uri_glob)
    if json:
        print_json(hits)
    else:
        from dataflows.display import show_hits

        show_hits(hits)


def verify_documents(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what differs by one run of the document path, then look again.")
    ] = False,
    allow_mass_delete: MassDelete = False,
    json: Json = False,
) -> None:
    """Hold sources, ledger, chunks and vectors against each other.

    Names each difference, a line each, and counts them. Every document is read and cut into chunks anew, but none is
    embedded, and nothing is changed. Exit code 1 if anything differs. While a run writes, what differs is looked at
    twice, and only what differs both times counts.

    With --repair, what can be mended is: its documents are indexed anew, with the vectors that they have. If files of
    vectors are damaged, all vectors are removed and every text is embedded again. The exit code is that of a second
    look.
    """
    from dataflows.config import load_settings
    from dataflows.display import show_differences, task_bar
    from dataflows.document_check import look_at_documents
    from dataflows.document_repair import mend_documents

    settings = load_settings()
    with task_bar("verify", quiet=json) as advanced:
        look = look_at_documents(settings, advanced)
        if look.differences and not repair:
            again = {difference.place for difference in look_at_documents(settings, advanced).differences}
            look = replace(look, differences=tuple(d for d in look.differences if d.place in again))
    records = [difference.record() for difference in look.differences]
    summary = look.record()
    if repair and records:
        with task_bar("repair", quiet=json) as advanced:
            after = mend_documents(settings, look, allow_mass_delete=allow_mass_delete, advanced=advanced)
        left = {difference.place for difference in after.differences}
        records = [{**d.record(), "mended": d.place not in left} for d in look.differences]
        seen = {difference.place for difference in look.differences}
        records += [{**d.record(), "mended": False} for d in after.differences if d.place not in seen]
        summary = after.record() | {"mended": sum(bool(record["mended"]) for record in records)}
    if json:
        print_json(records)
    else:
        show_differences(records)
    print_summary(summary, json=json)
    if summary["differences"]:
        way = "" if repair else "; `headrace verify documents --repair` mends what can be mended"
        raise HeadraceError(f"not equal, {summary['differences']} differ{way}")


def backfill_documents(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the file `documents` is written to.")],
    *,
    form: Annotated[Literal["parquet", "jsonl"], typer.Option("--format", help="What it is written as.")] = "parquet",
    json: Json = False,
) -> None:
    """Write the chunks of the index to a file, with their vectors.

    A row a chunk, by uri and ordinal, of what the index holds now: `headrace documents --once` brings it up to date
    before. The file comes whole, in the place of an older one. It is kept as a version of the dataset `documents`;
    the same content as in the newest version is that version.
    """
    from dataflows.artifacts import write_artifact
    from dataflows.config import load_settings
    from dataflows.display import show_summary, task_bar

    with task_bar("backfill", quiet=json) as advanced:
        kept = write_artifact(load_settings(), out, form, advanced=advanced)
    record = {name: getattr(kept, name) for name in ("version", "rows", "digest", "path", "format")}
    if json:
        print_json([record])
    else:
        show_summary(record, {"rows": "chunks"})
