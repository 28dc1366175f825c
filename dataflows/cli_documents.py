"""The commands of the document path: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from dataflows.cli_output import Json, print_json, print_summary
from operators.errors import UnavailableError


def documents(
    *,
    once: Annotated[bool, typer.Option("--once", help="End when everything found is done.")] = False,
    allow_mass_delete: Annotated[
        bool,
        typer.Option("--allow-mass-delete", help="Let more than half of a source's documents be removed."),
    ] = False,
    json: Json = False,
) -> None:
    """Run the document path: files → chunks and vectors, only where something changed.

    Looks at the sources again and again until SIGTERM or Ctrl-C, which end it cleanly, or once. What is in the ledger
    with the same content and the same settings is not read again, and no text is embedded twice. A document that
    cannot be read becomes a dead letter. Prints what became of every document.

    \b
    Settings that matter most (README.md lists all):
      INGEST_SOURCES            folders, files and globs, with commas between them
      SOURCE_INCLUDE            what is a document [**/*.md,**/*.txt,**/*.pdf]
      SOURCE_POLL_INTERVAL_SEC  seconds between two looks [60]
      PII_REDACTION             off, regex or presidio [off]
      CHUNK_SIZE                characters of a chunk, at most [1000]
      EMBEDDINGS                local, stub or openai [local]
      METADATA_DB_URL           documents and chunks [sqlite:///data/metadata.db]
      VECTORSTORE_PATH          vectors [data/vectors]
      RECOVERY_DIR              snapshots, in its folder `documents` [data/recovery]
    """  # noqa: D301  # \b: click leaves these lines as they are
    from dataflows.config import load_settings
    from dataflows.display import task_bar
    from dataflows.document_runner import run_documents
    from dataflows.engine import Cluster

    settings = load_settings()
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
    if done.away:
        said = "; ".join(f"`{name}`: {why}" for name, why in sorted(done.away.items()))
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
