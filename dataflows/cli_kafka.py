"""The commands round running it: look at everything, make topics, send signals to try."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

import typer

from dataflows.cli_output import Json, print_json
from operators.errors import HeadraceError


def doctor(*, json: Json = False) -> None:
    """Look at all that a run needs.

    Python, packages, settings, disks, recovery folder, Feast, and with KAFKA_BROKERS the brokers, topics, rights,
    message sizes, lag and clock: each is ok, or what to do is said. Changes nothing, and ends in a minute or two
    whatever does not answer. Exit code 1 if anything is wrong.
    """
    from dataflows.display import show_finding
    from dataflows.doctor import examine

    count = Counter({"ok": 0, "wrong": 0, "skipped": 0})
    for finding in examine():
        count[finding.state] += 1
        if json:
            print_json([finding.record()])
        else:
            show_finding(finding.check, finding.state, finding.says)
    if json:
        print_json([dict(count)])
    if count["wrong"]:
        raise HeadraceError(f"{count['wrong']} of {count.total()} checks found what is wrong")


def topics_create(
    *,
    partitions: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Partitions of each new topic.")] = 3,
    replication: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=100, help="Copies of each; default: 3, or all brokers.")
    ] = None,
    json: Json = False,
) -> None:
    """Make the topics that the settings name and Kafka lacks.

    Those that are there stay as they are, so it is safe to repeat. Signals are stamped by the broker; late events
    and dead letters are kept 30 days and may be larger than EVENT_BYTES_MAX, results are kept 7 days; all else is as
    the brokers have it.
    """
    from dataflows.config import load_settings
    from dataflows.topics import create_topics

    _show(create_topics(load_settings(), partitions=partitions, replication=replication), json=json)


def topics_list(*, json: Json = False) -> None:
    """List the topics that the settings name.

    With partitions, copies, messages, how long they are kept and how large they may be.
    """
    from dataflows.config import load_settings
    from dataflows.topics import list_topics

    _show(list_topics(load_settings()), json=json)


def produce(  # noqa: PLR0913  # one for each thing that may differ
    *,
    rate: Annotated[float, typer.Option(metavar="R", min=0.001, max=1e6, help="Signals a second.")],
    entities: Annotated[int, typer.Option(metavar="N", min=1, max=10_000_000, help="How many send them.")] = 100,
    fields: Annotated[
        str, typer.Option(metavar="A,B,…", help="Fields of each; default: those of the feature sets.")
    ] = "",
    events: Annotated[int, typer.Option(metavar="N", min=0, help="End after so many; 0 = on Ctrl-C.")] = 0,
    seed: Annotated[int, typer.Option(metavar="S", help="Another one gives other values.")] = 0,
    late: Annotated[float, typer.Option(metavar="P", min=0, max=1, help="Share of signals that come late.")] = 0.0,
    form: Annotated[Literal["json"], typer.Option("--format", help="What a message is.")] = "json",
    json: Json = False,
) -> None:
    """Send made-up signals to TOPIC_SIGNALS, to try things.

    Values wander as those of sensors do; each entity counts its own signals. Goes to Kafka with KAFKA_BROKERS, else
    to the partition `produced-0` in BUS_DIR. Ends cleanly on Ctrl-C and SIGTERM, once all that was sent is
    acknowledged.
    """
    from dataflows.cli_output import print_summary
    from dataflows.config import load_settings
    from dataflows.produce import Recipe, produce_signals

    del form  # one for now
    names = tuple(name.strip() for name in fields.split(",") if name.strip())
    recipe = Recipe(rate=rate, entities=entities, fields=names, events=events, seed=seed, late=late)
    print_summary(produce_signals(load_settings(), recipe, quiet=json), json=json)


def _show(records: list[dict[str, object]], *, json: bool) -> None:
    if json:
        print_json(records)
    else:
        from dataflows.display import show_topics

        show_topics(records)
