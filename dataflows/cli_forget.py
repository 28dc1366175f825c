"""The commands that forget: parse, ask, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dataflows.cli_output import Json, print_json, print_summary
from operators.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from dataflows.forget import Receipt

forget = typer.Typer(
    help="Erase an entity or a document, and keep it away.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@forget.callback()
def forget_one(
    context: typer.Context,
    *,
    entity: Annotated[str | None, typer.Option(metavar="ID", help="The entity_id of whom to forget.")] = None,
    document: Annotated[str | None, typer.Option(metavar="URI", help="The uri, or path, of what to forget.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Erase an entity or a document, and keep it away.

    An entity: feature history, archive, online store, late and held events, dead letters, recovery snapshots. A
    document: chunks, full text, vectors, artifacts, dead letters, recovery snapshots. Everything else stays as it is,
    and the next run goes on. No run may be on. Prints what was removed from each place, and what a second look found;
    signals on their log cannot be removed, and are told by partition and offset.

    From then on its signals are refused, and the document is passed over, until `headrace forget lift`.

    \b
    Exit code 0 only if nothing is left where it can be removed. Killed half-way: type it again.
    """  # noqa: D301  # \b: click leaves these lines as they are
    if context.invoked_subcommand is not None:
        return
    if (entity is None) == (document is None):
        raise ConfigError("name one: --entity ID or --document URI")
    name = entity if entity is not None else _uri(document or "")
    _check(name)
    _ask(f"{'entity' if document is None else 'document'} `{name}`", yes=yes)
    from dataflows.config import load_settings

    if document is None:
        from dataflows.forget_entity import forget_entity

        receipt = forget_entity(load_settings(), name)
    else:
        from dataflows.forget_document import forget_document

        receipt = forget_document(load_settings(), name)
    _show(receipt, json=json)
    if receipt.left:
        raise HeadraceError(f"{receipt.left} are left where they could be removed; see the receipt, and type it again")


@forget.command("list")
def forget_list(*, json: Json = False) -> None:
    """List what is kept away, as salted hashes.

    Nothing else is known of it.
    """
    from contextlib import closing

    from dataflows.commands import time_text
    from dataflows.config import load_settings
    from dataflows.wiring import forgotten_names_of, forgotten_path

    settings = load_settings()
    records: list[dict[str, object]] = []
    if forgotten_path(settings).exists():
        with closing(forgotten_names_of(settings)) as names:
            found = names.list()
        records = [{"mark": n.mark, "kind": n.kind, "since": time_text(n.since_us), "done": n.done} for n in found]
    if json:
        print_json(records)
        return
    for record in records:
        state = "" if record["done"] else "  not done: type the command again"
        typer.echo(f"{record['mark']}  {record['kind']:8}  {record['since']}{state}")


@forget.command("lift")
def forget_lift(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The ID or URI, or the mark that `forget list` shows.")],
    *,
    json: Json = False,
) -> None:
    """Let an entity or a document come again.

    What was erased stays erased.
    """
    from contextlib import closing

    from dataflows.config import load_settings
    from dataflows.wiring import forgotten_names_of, forgotten_path

    settings = load_settings()
    lifted = 0
    if forgotten_path(settings).exists():
        with closing(forgotten_names_of(settings)) as names:
            lifted = names.lift(name) or names.lift(_uri(name))
    if not lifted:
        raise ConfigError(f"`{name}` is not on the list; `headrace forget list` shows the marks")
    print_summary({"lifted": lifted}, json=json)


def _uri(text: str) -> str:
    """The uri of a document, which may be named by its path."""
    from dataflows.sources.files import uri_of

    return text if "://" in text or not text else uri_of(str(Path(text).absolute()))


def _check(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        name = ""
    if not name:
        raise ConfigError("the name is empty, or no UTF-8")


def _ask(what: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"to forget {what} cannot be undone: pass --yes")
    typer.confirm(f"Forget {what}? What is erased cannot be brought back", abort=True, err=True)


def _show(receipt: Receipt, *, json: bool) -> None:
    if json:
        print_json([*(place.record() for place in receipt.places), receipt.summary()])
        return
    for place in receipt.places:
        typer.echo(place.place)
        said = f"  {place.what}: {place.removed} removed, {place.left} left"
        typer.echo(said if place.removed or place.left or not place.note else f"  {place.note}")
        if place.note and (place.removed or place.left):
            typer.echo(f"  {place.note}")
    summary = receipt.summary()
    kept = f"; {summary['kept']} on logs, which are kept from coming back" if summary["kept"] else ""
    typer.echo(f"removed {summary['removed']}, left {summary['left']}{kept}. On the list as {receipt.mark}.")
